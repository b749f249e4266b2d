"""Linear and affine operators, which change the norm: addition, ablation, erasure, coordinate-wise maps."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Operator
from rmuse_interp.edits.sentence import Kept
from rmuse_interp.maths.linalg import ledoit_wolf, working
from rmuse_interp.parts.subspace import Subspace


class Add(Operator):
    """`h̃ = h + scale · v`: the classical steering vector. It does not keep the norm.

    Args:
        vector: [d] v.
        scale: factor of v.
    """

    vector: Tensor

    def __init__(self, vector: Float[Tensor, " d"], scale: float = 1.0):
        super().__init__()
        self.hold(as_given=True, vector=vector)
        self.scale = scale

    def keeping(self, rrs: Subspace, what: Kept = "rotation") -> "Add":
        """The same addition with v projected out of the RRS; both forms coincide."""
        return Add(rrs.remove(self.vector), self.scale)

    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        states = working(h)
        return (states + self.scale * self.vector.to(states.dtype)).to(h.dtype)

    def describe(self) -> str:
        return f"add {self.scale:g} × a vector of length {float(self.vector.norm()):.3g}"


class Ablate(Operator):
    """`h̃ = h − share · P_U h`: directional ablation. With share 1 it is idempotent; it shrinks the norm.

    Args:
        subspace: U, the subspace to remove.
        share: 1 removes the component in U, 2 reflects h in the complement of U.
    """

    def __init__(self, subspace: Subspace, share: float = 1.0):
        super().__init__()
        self.subspace = subspace
        self.share = share

    def keeping(self, rrs: Subspace, what: Kept = "rotation") -> "Ablate":
        """The ablation of U projected out of the RRS (`U.minus(rrs)`); both forms coincide."""
        return Ablate(self.subspace.minus(rrs), self.share)

    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        states = working(h)
        return (states - self.share * self.subspace.project(states)).to(h.dtype)

    def describe(self) -> str:
        part = "" if self.share == 1.0 else f"{self.share:g} of "
        return f"remove {part}{self.subspace.describe()}"


class Affine(Operator):
    """`h̃ = h + scale · W Rᵀ(h − c)`: reads along the columns of R and writes along those of W.

    Defining property: states with `Rᵀh = Rᵀc` stay, and every change lies in span(W). The full matrix
    `I + scale · W Rᵀ` is never formed.

    Args:
        reading: [d, k] R.
        writing: [d, k] W.
        center: [d] c; the origin by default.
        scale: factor of the change.

    Raises:
        RMuseError: R and W of different shapes.
    """

    reading: Tensor
    writing: Tensor
    center: Tensor | None

    def __init__(
        self,
        reading: Float[Tensor, "d k"],
        writing: Float[Tensor, "d j"],
        center: Float[Tensor, " d"] | None = None,
        scale: float = 1.0,
    ):
        super().__init__()
        if reading.shape != writing.shape:
            raise RMuseError(
                "an affine map needs as many directions to write along as to read, got shapes "
                f"{tuple(reading.shape)} and {tuple(writing.shape)}"
            )
        self.hold(as_given=True, reading=reading, writing=writing, center=center)
        self.scale = scale

    @classmethod
    def erasing(
        cls,
        states: Float[Tensor, "examples d"],
        concept: Float[Tensor, "n c"],
        *,
        shrinkage: float | None = None,
        scale: float = 1.0,
    ) -> "Affine":
        """The LEACE eraser, `h̃ = h − scale · S⁺ U Uᵀ S (h − μ)`: `S = (Σ_xx^½)⁺`, U an orthonormal basis of `S Σ_xz`.

        Defining property: with scale 1, h̃ and the concept have covariance 0 on the examples. All classes then have
        the same mean, and no linear classifier of h̃ does better than a constant. Of all affine maps with that
        property it moves the states least (Belrose et al. 2023, arXiv 2306.03819). It is not an orthogonal
        projection.

        Args:
            states: [examples, d] states.
            concept: [examples, c] class indicators or other numbers, to be made linearly unpredictable.
            shrinkage: weight of the identity in Σ_xx, in [0, 1]; Ledoit and Wolf's (2004) by default. The erasure
                is exact on the examples for any weight; 0 is the paper's formula, with the pseudo-inverse.
            scale: 1 erases the concept, smaller values keep part of it.

        Raises:
            RMuseError: lengths that disagree, or a concept that takes only one value.
        """
        if len(states) != len(concept):
            raise RMuseError(f"one concept row per state was required, got {len(concept)} for {len(states)}")
        exact, labels = states.to(torch.float64), concept.to(torch.float64)
        mean = exact.mean(dim=0)
        centred, centred_labels = exact - mean, labels - labels.mean(dim=0)
        if not bool((centred_labels.abs() > 1e-12).any()):
            raise RMuseError("a concept that varies was required, got the same value for every state")
        n, d = centred.shape
        share = ledoit_wolf(centred) if shrinkage is None else shrinkage
        covariance = (1 - share) * (centred.mT @ centred / n)
        covariance.diagonal().add_(share * centred.square().mean())
        values, vectors = torch.linalg.eigh(covariance)
        known = values > values[-1] * d * torch.finfo(exact.dtype).eps
        spread, vectors = values[known].sqrt(), vectors[:, known]
        # In the basis of the eigenvectors, S divides by the standard deviations.
        crossed = (vectors.mT @ (centred.mT @ centred_labels / n)) / spread.unsqueeze(1)
        left, s, _ = torch.linalg.svd(crossed, full_matrices=False)
        # Indicators of all classes sum to 1: one of them is redundant, and its direction would be rounding error.
        left = left[:, s > s.amax() * 1e-9] if s.numel() else left
        reading, writing = vectors @ (left / spread.unsqueeze(1)), -(vectors * spread) @ left
        kind = working(states).dtype
        return cls(reading.to(kind), writing.to(kind), mean.to(kind), scale)

    def keeping(self, rrs: Subspace, what: Kept = "rotation") -> "Affine":
        """The same map with W projected out of the RRS; both forms coincide."""
        return Affine(self.reading, rrs.remove(self.writing.mT).mT, self.center, self.scale)

    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        states = working(h)
        moved = states if self.center is None else states - self.center.to(states.dtype)
        read = moved @ self.reading.to(states.dtype)
        return (states + self.scale * (read @ self.writing.to(states.dtype).mT)).to(h.dtype)

    def describe(self) -> str:
        k = self.reading.shape[1]
        origin = "h" if self.center is None else "h − c"
        return f"add {self.scale:g} × W Rᵀ({origin}) of rank {k}"


class PerCoordinate(Operator):
    """`h̃ = (1 − share) h + share (ω ⊙ h + β)`: an interpolated affine map of each coordinate.

    Args:
        factor: [d] ω.
        shift: [d] β.
        share: 0 keeps the state, 1 maps it fully.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, factor: Float[Tensor, " d"], shift: Float[Tensor, " d"], share: float = 1.0):
        super().__init__()
        self.hold(as_given=True, factor=factor, shift=shift)
        self.share = share

    @classmethod
    def transporting(
        cls, source: Float[Tensor, "examples d"], target: Float[Tensor, "n d"], share: float = 1.0
    ) -> "PerCoordinate":
        """Fit the affine optimal transport from `source` to `target`, separately for each coordinate.

        `ω = Σ a_(i) b_(i) / Σ a_(i)²` over the sorted centred values of a coordinate, `β = m_b − ω m_a`: the affine
        map closest to the transport between equally many samples, which pairs them by rank (arXiv 2410.23054).
        Defining property: the mean is mapped to the mean, and samples that differ by an increasing affine map are
        mapped onto each other, so that the variances agree. A constant coordinate is only shifted (ω = 1).

        Args:
            source: [examples, d] states.
            target: equally many states, in any order.
            share: see `PerCoordinate`.

        Raises:
            RMuseError: no states, or not equally many.
        """
        if source.shape != target.shape or not len(source):
            raise RMuseError(
                "equally many source and target states were required, at least one, got shapes "
                f"{tuple(source.shape)} and {tuple(target.shape)}"
            )
        here, there = source.to(torch.float64), target.to(torch.float64)
        start, goal = here.mean(dim=0), there.mean(dim=0)
        a, b = (here - start).sort(dim=0).values, (there - goal).sort(dim=0).values
        spread = a.square().sum(dim=0)
        # In float32 a constant coordinate varies by rounding error only, which must not be divided by.
        varies = spread > 1e-12 * here.square().sum(dim=0)
        factor = torch.where(varies, (a * b).sum(dim=0) / torch.where(varies, spread, 1.0), 1.0)
        kind = working(source).dtype
        return cls(factor.to(kind), (goal - factor * start).to(kind), share)

    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        states = working(h)
        mapped = self.factor.to(states.dtype) * states + self.shift.to(states.dtype)
        return ((1.0 - self.share) * states + self.share * mapped).to(h.dtype)

    def describe(self) -> str:
        return f"map each coordinate to ω h + β, by {self.share:g} of the way"

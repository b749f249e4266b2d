"""Rotations, which keep the norm: toward a direction (`SlerpToward`), or to refusal states (`Transport`)."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Operator
from rmuse_interp.edits.sentence import Explanation, Kept
from rmuse_interp.maths.linalg import working
from rmuse_interp.maths.sphere import geodesic, norm, slerp, unit
from rmuse_interp.parts.angle import ACS, Angle
from rmuse_interp.parts.prototypes import thinned
from rmuse_interp.parts.subspace import Subspace

Beyond = Literal["keep", "nearest"]
"""How a position-aware transport treats steps past the longest trajectory: keep the state, or use all prototypes."""

_VANISHING: Final = 1e-6
"""Fraction of ‖h‖ below which the part outside the RRS is rounding error and is not rotated."""


@dataclass(frozen=True, eq=False)
class _Bearing:
    """The direction of each state, or of its movable part, and the goal it is rotated toward.

    Attributes:
        states: h in the precision of the geometry.
        moved: h, or its part outside the RRS.
        length: ‖moved‖.
        heading: `u(moved)`.
        goal: unit vector to rotate toward; zero means no edit.
        share: fraction of the angle, one per state or one for all.
        able: whether both `moved` and `goal` are nonzero.
    """

    states: Tensor
    moved: Tensor
    length: Tensor
    heading: Tensor
    goal: Tensor
    share: Tensor | float
    able: Tensor


class _Rotation(Operator):
    """A norm-keeping operator: rotates `u(h)`, or the part of it outside the RRS, and restores the length."""

    rrs: Subspace | None
    kept: Kept = "rotation"

    @property
    def outside(self) -> Subspace | None:
        """The subspace that is protected: only the part of a state outside it is rotated; None for the whole state."""
        return self.rrs if self.kept == "rotation" else None

    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        at = self._bearing(h, step)
        turned = at.length * slerp(at.heading, at.goal, at.share)
        if self.outside is None:
            return torch.where(at.able, turned, at.states).to(h.dtype)
        # Removing the rounding error inside the RRS from the change keeps P_rrs h to a relative 1e-6.
        change = self.outside.remove(turned - at.moved)
        return torch.where(at.able, at.states + change, at.states).to(h.dtype)

    def explain(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Explanation:
        """Both angles and λ as used by `forward`: inside the RRS complement if the rotation is protected."""
        at = self._bearing(h, step)
        theta_tar, theta_dir, prototype = self._angles(at, step)
        share = torch.as_tensor(at.share, dtype=at.states.dtype, device=h.device).expand(h.shape[:-1])
        able = at.able.squeeze(-1)
        theta_tar, theta_dir = (
            None if x is None else torch.where(able, x, torch.nan) for x in (theta_tar, theta_dir)
        )
        chosen = None if prototype is None else torch.where(able, prototype, -1)
        return Explanation(theta_tar, theta_dir, torch.where(able, share, 0.0), chosen)

    def _bearing(self, h: Tensor, step: Tensor | None) -> _Bearing:
        states = working(h)
        moved = states if self.outside is None else self.outside.remove(states)
        length, heading = norm(moved), unit(moved)
        goal, share = self._goal(heading, states, step)
        # A goal of length 0 stands for "no edit". Strictly greater: the zero state stays as it is.
        able = (length > _VANISHING * norm(states)) & (goal.square().sum(dim=-1, keepdim=True) > 0)
        return _Bearing(states, moved, length, heading, goal, share, able)

    def _keeping(self) -> str:
        if self.rrs is None:
            return ""
        if self.kept == "direction":
            return f", v̂ cleared of the RRS (rank {self.rrs.rank})"
        return f", inside the complement of the RRS (rank {self.rrs.rank})"

    @abstractmethod
    def _goal(self, heading: Tensor, states: Tensor, step: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """The unit vector to rotate each state toward (zero: no edit), and the fraction of the angle."""

    @abstractmethod
    def _angles(
        self, at: _Bearing, step: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """θ_tar, θ_dir and the chosen prototype of each state; None for quantities the operator does not have."""


class SlerpToward(_Rotation):
    """`h̃ = ‖h‖ · slerp(u(h), v̂; λ)` (eq. 4.18): rotate toward a direction by a calibrated fraction of the angle.

    Defining property: ‖h̃‖ = ‖h‖ and ∠(u(h̃), v̂) = (1 − λ) ∠(u(h), v̂). It is not `h + α v̂`, which changes the
    norm. With `signed`, the goal is the paper's normalised update `sign(vᵀh) (I − P_rrs) v / ‖·‖` (eq. 4.10), with
    the sign taken from the raw v; where vᵀh = 0 there is no update.

    Args:
        direction: [d] v_un, of any nonzero length.
        angle: gives `fraction(h, direction)` = λ in [0, 1]: `ACS` or `FixedFraction`.
        signed: rotate toward `sign(vᵀh) v̂` (preset `paper`) instead of v̂ itself ("oriented").
        rrs: subspace to keep, see `keeping`; None for none.
        kept: `direction` removes the RRS from v̂ and rotates all of h; `rotation` rotates inside the complement.

    Raises:
        RMuseError: a direction of length 0, or one that lies inside the RRS.
    """

    direction: Tensor
    toward: Tensor

    def __init__(
        self,
        direction: Float[Tensor, " d"],
        angle: Angle,
        signed: bool = False,
        rrs: Subspace | None = None,
        kept: Kept = "rotation",
    ):
        super().__init__()
        if kept not in get_args(Kept):
            raise RMuseError(f"a form out of {', '.join(get_args(Kept))} was required, got {kept!r}")
        if not isinstance(angle, Angle):
            raise RMuseError(f"an angle (ACS or FixedFraction) was required, got {type(angle).__name__}")
        self.hold(direction=direction)
        self.angle = angle
        self.signed = signed
        self.rrs = rrs
        self.kept: Kept = "rotation" if rrs is None else kept
        # Inside the complement both angles are measured on the complement's sphere.
        self._angle = angle if self.outside is None else angle.outside(self.outside)
        toward = unit(self.direction)
        toward = toward if rrs is None else rrs.remove(toward)
        # 1e-5, not 0: a vector minus itself leaves float32 noise, which must not be normalised.
        if not float(toward.norm()) > 1e-5:
            raise RMuseError(
                "a direction with a part outside the RRS was required, got one inside it (or 0): lower the energy of "
                "the RRS, or drop .keeping(...)"
            )
        self.hold(toward=unit(toward))

    def keeping(self, rrs: Subspace, what: Kept = "rotation") -> "SlerpToward":
        """Remove the RRS from the `direction`, `v̂ = (I − P_rrs) v/‖·‖` (eq. 4.10), or from the `rotation` (repair D5).

        `direction` rotates h as a whole; `rotation` rotates it inside the RRS complement only, which keeps `P_rrs h`
        and the norm in the complement.
        """
        return self.changed(rrs=rrs, kept=what)

    def _goal(self, heading: Tensor, states: Tensor, step: Tensor | None) -> tuple[Tensor, Tensor]:
        goal = self.toward.to(states.dtype).expand_as(heading)
        if self.signed:
            goal = goal * (states @ self.direction.to(states.dtype)).sign().unsqueeze(-1)
        return goal, self._angle.fraction(heading, goal)

    def _angles(self, at: _Bearing, step: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor | None]:
        if isinstance(self._angle, ACS):
            found = self._angle.angles(at.heading, at.goal)
            return found.theta_tar, found.theta_dir, found.nearest
        return None, geodesic(at.heading, at.goal), None

    def describe(self) -> str:
        goal = "sign(vᵀh) v̂" if self.signed else "v̂"
        return f"rotate toward {goal} by {self.angle.describe()}{self._keeping()}"


class Transport(_Rotation):
    """`h̃ = ‖h‖ · slerp(u(h), p*; fraction)`, p* the nearest refusal prototype: token-level transport.

    Defining property: with fraction 1, u(h̃) is a prototype (with an RRS: u((I − P)h̃) is a prototype projected into
    the complement and normalised). It equals semi-relaxed optimal transport with free target marginal.

    Args:
        points: [prototypes, d] refusal states, or the targets of a plan (`Prototypes.transported`); normalised here.
        positions: [prototypes] step (position − prompt_end) of each; if given, a state at step t uses only
            prototypes with |position − t| ≤ window, or those closest in position if there are none.
        window: half-width of that range, in tokens.
        fraction: fraction of the angle to rotate, in [0, 1].
        beyond: past the longest trajectory, `keep` the state or move it to the `nearest` of all prototypes.
        rrs: subspace in which h does not change; see `keeping`.

    Raises:
        RMuseError: no prototypes, positions of another length, a negative window, a fraction outside [0, 1].
    """

    points: Tensor
    positions: Tensor | None
    targets: Tensor

    def __init__(
        self,
        points: Float[Tensor, "prototypes d"],
        positions: Int[Tensor, " prototypes"] | None = None,
        window: int = 0,
        fraction: float = 1.0,
        beyond: Beyond = "keep",
        rrs: Subspace | None = None,
    ):
        super().__init__()
        if not len(points):
            raise RMuseError("a transport needs prototypes, got none: fit refusal prototypes first")
        if window < 0 or not 0.0 <= fraction <= 1.0:
            raise RMuseError(
                f"window ≥ 0 and a fraction in [0, 1] were required, got {window} and {fraction}"
            )
        self.hold(points=points, positions=positions)
        self.window = window
        self.fraction = fraction
        self.beyond: Beyond = beyond
        self.rrs = rrs
        outside = unit(self.points) if rrs is None else rrs.remove(unit(self.points))
        # A prototype inside the RRS has no direction outside it: its row is zero, which means "no edit".
        self.hold(targets=torch.where(norm(outside) > _VANISHING, unit(outside), torch.zeros_like(outside)))

    def keeping(self, rrs: Subspace, what: Kept = "rotation") -> Operator:
        """Rotation inside the complement of the RRS only: `P_rrs h` and the complement's norm are kept (D5)."""
        return self.changed(rrs=rrs) if what == "rotation" else super().keeping(rrs, what)

    def capped(self, cap: int, seed: int = 0) -> "Transport":
        """The same transport with at most `cap` of its prototypes, thinned step by step; see `thinned`."""
        kept = thinned(unit(self.points.double()), self.positions, cap, seed)
        positions = None if self.positions is None else self.positions[kept]
        return self.changed(points=self.points[kept], positions=positions)

    def _goal(self, heading: Tensor, states: Tensor, step: Tensor | None) -> tuple[Tensor, float]:
        nearest, past = self._nearest(heading, step)
        goal = self.targets.to(states.dtype)[nearest]
        return (goal if past is None else torch.where(past, 0.0, goal)), self.fraction

    def _nearest(self, heading: Tensor, step: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Index of each state's prototype, and whether a state is kept because it is past all trajectories."""
        nearness = heading @ self.targets.to(heading.dtype).mT
        if self.positions is None:
            return nearness.argmax(dim=-1), None
        if step is None:
            raise RMuseError(
                "a position-aware transport needs each state's step: run it in a plan, or pass step="
            )
        gap = (self.positions - step.unsqueeze(-1)).abs()
        reach = gap.amin(dim=-1, keepdim=True).clamp_min(self.window)
        past = (step > self.positions.max()).unsqueeze(-1)
        index = torch.where((gap <= reach) | past, nearness, -torch.inf).argmax(dim=-1)
        return index, past if self.beyond == "keep" else None

    def _angles(self, at: _Bearing, step: Tensor | None) -> tuple[Tensor, None, Tensor]:
        return geodesic(at.heading, at.goal), None, self._nearest(at.heading, step)[0]

    def describe(self) -> str:
        share = "" if self.fraction == 1.0 else f" by {self.fraction:g} of the angle"
        when = (
            ""
            if self.positions is None
            else f" within {self.window} of its step (beyond them: {self.beyond})"
        )
        return f"move to the nearest of {len(self.points)} refusal prototypes{when}{share}{self._keeping()}"

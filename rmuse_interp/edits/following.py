"""Operators of a whole answer: along one of the model's own refusals, in centred coordinates, with falling strength.

`Follow` chooses one trajectory per answer, at the last prompt token, and keeps to it; `Framed` applies any operator in
the coordinates of a `Frame`; `Fading` weakens any operator once the answer has begun. They nest:
``op.Fading(op.Framed(op.SlerpToward(…), frame), until=6, decay=0.8)``.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Operator
from rmuse_interp.edits.sentence import Explanation, Kept, Verb
from rmuse_interp.edits.state import Slice
from rmuse_interp.maths.linalg import working
from rmuse_interp.maths.sphere import geodesic, unit
from rmuse_interp.parts.frame import Frame
from rmuse_interp.parts.subspace import Subspace


class Lasting(Operator):
    """An operator that may choose something at the last prompt token and keep to it for the whole answer.

    A plan makes the choice once per row, from the state at the first of its sites, and remembers it: all sites of an
    edit share it, and so do all beams of a query. Called by itself, without a plan, an operator takes each row of a
    conversation ([rows, tokens, d] with its steps) for one answer, and chooses where the step is 0.
    """

    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        return self.edited(h, step, None)

    def explain(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Explanation:
        return self.explained(h, step, None)

    def along(self, choice: Int[Tensor, "*tokens"]) -> Verb:
        return _Along(self, choice) if self.remembers else self

    @abstractmethod
    def edited(
        self, h: Float[Tensor, "*tokens d"], step: Tensor | None, choice: Tensor | None
    ) -> Float[Tensor, "*tokens d"]:
        """The edited states, given each state's choice (−1: none, the state stays); None lets each row choose."""

    @abstractmethod
    def explained(
        self, h: Float[Tensor, "*tokens d"], step: Tensor | None, choice: Tensor | None
    ) -> Explanation:
        """See `explain`; the choice as in `edited`."""


@dataclass(frozen=True, eq=False)
class _Along:
    """A lasting operator with the choice of each state made."""

    operator: Lasting
    choice: Int[Tensor, "*tokens"]
    of_batch: bool = False
    remembers: bool = False

    def __call__(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        return self.operator.edited(h, step, self.choice)

    def explain(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Explanation:
        return self.operator.explained(h, step, self.choice)

    def given(
        self, chosen: Bool[Tensor, "batch tokens"], call: Slice, width: int
    ) -> tuple[Bool[Tensor, "batch tokens"], Float[Tensor, "batch tokens d"]] | None:
        return None

    def starting(self, h: Float[Tensor, "rows d"]) -> Int[Tensor, " rows"]:
        return self.operator.starting(h)

    def along(self, choice: Int[Tensor, "*tokens"]) -> Verb:
        return replace(self, choice=choice)


class Follow(Lasting):
    """`h̃_t = h_t + f (I − P_rrs)(p_{j,t} − h_t)`: along trajectory j of refusals, chosen once per answer and kept to.

    `j = owner(argmin_k ‖z(h_0) − z(key_k)‖)`: the refusal that the most similar question drew. Defining properties: with
    f = 1 and no RRS, h̃_t is the trajectory's own state at the same step; `P_rrs h` is kept; past its trajectory's last
    state, from which the end of turn is predicted, a state is left alone. It does not keep the norm, and a state's
    neighbours on other trajectories play no part (as they do in `Transport`, which may change the refusal at each step).

    Args:
        points: [trajectories, steps, d] states of refusals, step 0 the last prompt token; rows are filled up with zeros.
        lengths: [trajectories] number of states in each.
        keys: [keys, d] states at the last prompt token, without the refusing prefix, that choose; None for a single
            trajectory.
        owner: [keys] the trajectory that each key stands for.
        fraction: f in [0, 1], the share of the way.
        frame: coordinates in which keys are compared; None for those of the stream.
        rrs: subspace in which h does not change; see `keeping`.

    Raises:
        RMuseError: no trajectories, lengths or owners that do not fit, several trajectories without keys, a fraction
            outside [0, 1].
    """

    points: Tensor
    lengths: Tensor
    keys: Tensor | None
    owner: Tensor | None

    def __init__(
        self,
        points: Float[Tensor, "trajectories steps d"],
        lengths: Int[Tensor, " trajectories"],
        keys: Float[Tensor, "keys d"] | None = None,
        owner: Int[Tensor, " keys"] | None = None,
        fraction: float = 1.0,
        frame: Frame | None = None,
        rrs: Subspace | None = None,
    ):
        super().__init__()
        count, longest = points.shape[:2]
        fits = len(lengths) == count and bool(((lengths > 0) & (lengths <= longest)).all())
        if not count or not fits:
            raise RMuseError(
                f"trajectories with a length each in 1..{longest} were required, got {count} and {lengths.tolist()}"
            )
        keyed = keys is not None and owner is not None and len(keys) == len(owner) > 0
        if (count > 1 or keys is not None or owner is not None) and not (
            keyed and owner is not None and bool(((owner >= 0) & (owner < count)).all())
        ):
            raise RMuseError(
                f"keys with an owner each among {count} trajectories were required to choose one, got "
                f"{None if keys is None else len(keys)} and {None if owner is None else owner.tolist()}"
            )
        if not 0.0 <= fraction <= 1.0:
            raise RMuseError(f"a fraction in [0, 1] was required, got {fraction}")
        self.hold(points=points, lengths=lengths, keys=keys, owner=owner)
        self.fraction = float(fraction)
        self.frame = frame
        self.rrs = rrs

    @property
    def remembers(self) -> bool:
        return True

    def keeping(self, rrs: Subspace, what: Kept = "rotation") -> Operator:
        """The same move inside the complement of the RRS: `P_rrs h` is kept (repair D5)."""
        return self.changed(rrs=rrs) if what == "rotation" else super().keeping(rrs, what)

    def starting(self, h: Float[Tensor, "rows d"]) -> Int[Tensor, " rows"]:
        """The trajectory that each answer follows, chosen by the state at its last prompt token."""
        if self.keys is None or self.owner is None:
            return torch.zeros(h.shape[:-1], dtype=torch.long, device=h.device)
        near = torch.cdist(self._seen(h), self._seen(self.keys.to(working(h).dtype)))
        return self.owner[near.argmin(dim=-1)]

    def edited(
        self, h: Float[Tensor, "*tokens d"], step: Tensor | None, choice: Tensor | None
    ) -> Float[Tensor, "*tokens d"]:
        states = working(h)
        goal, _, on = self._goal(states, step, choice)
        change = goal - states if self.rrs is None else self.rrs.remove(goal - states)
        return torch.where(on.unsqueeze(-1), states + self.fraction * change, states).to(h.dtype)

    def explained(
        self, h: Float[Tensor, "*tokens d"], step: Tensor | None, choice: Tensor | None
    ) -> Explanation:
        """θ_tar: the angle between state and trajectory; λ: the share of the way, not of an angle."""
        states = working(h)
        goal, index, on = self._goal(states, step, choice)
        theta = torch.where(on, geodesic(unit(states), unit(goal)), torch.nan)
        share = torch.where(on, torch.full_like(theta, self.fraction), 0.0)
        return Explanation(theta, None, share, torch.where(on, index, -1))

    def _goal(
        self, states: Tensor, step: Tensor | None, choice: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The state of its trajectory at each state's step, the index of it, and whether there is one."""
        if step is None:
            raise RMuseError("a trajectory needs each state's step: run the edit in a plan, or pass step=")
        if choice is None:
            choice = self._chosen(states, step)
        longest = self.points.shape[1]
        which = choice.clamp_min(0)
        on = (choice >= 0) & (step >= 0) & (step < self.lengths[which])
        at = step.clamp(0, longest - 1)
        return self.points[which, at].to(states.dtype), which * longest + at, on

    def _chosen(self, states: Tensor, step: Tensor) -> Tensor:
        """The choice of each state where no plan has made it: of its row, at step 0."""
        start = step == 0
        if len(self.points) == 1 or bool(start.all()):
            return self.starting(states.reshape(-1, states.shape[-1])).reshape(step.shape)
        if step.ndim < 2 or not bool((start.sum(dim=-1) == 1).all()):
            raise RMuseError(
                "the state at the last prompt token (step 0) chooses an answer's trajectory and was required in every "
                "row: run the edit in a plan, or pass whole rows [rows, tokens, d]"
            )
        return self.starting(states[start]).reshape(*step.shape[:-1], 1).expand_as(step)

    def _seen(self, h: Tensor) -> Tensor:
        return working(h) if self.frame is None else self.frame(h)

    def describe(self) -> str:
        count = len(self.points)
        which = "the model's refusal" if count == 1 else f"one of {count} refusals, kept to,"
        share = "" if self.fraction == 1.0 else f" by {self.fraction:g} of the way"
        kept = "" if self.rrs is None else f", inside the complement of the RRS (rank {self.rrs.rank})"
        return f"follow {which} to its end{share}{kept}"


class _Around(Lasting):
    """An operator around another one."""

    operator: Operator

    @property
    def remembers(self) -> bool:
        return self.operator.remembers

    @property
    def rrs(self) -> Subspace | None:
        """The subspace that the operator inside keeps, in the coordinates of the stream."""
        inner = getattr(self.operator, "rrs", None)
        return inner if isinstance(inner, Subspace) else None

    def _inner(self, choice: Tensor | None) -> Verb:
        return self.operator if choice is None else self.operator.along(choice)


class Framed(_Around):
    """`h̃ = c + s ⊙ f(z(h))`, `z(h) = (h − c) ⊘ s`: any operator f in the coordinates of a frame.

    With `SlerpToward` and `ACS` it is the calibrated rotation in the centred, scaled space: angles are those of z, where
    no massive dimension decides them, and `‖z‖` is kept instead of ‖h‖. A straight move (`Add`, `Follow`) is the same in
    any frame.

    Args:
        operator: f; its directions, points and subspaces are those of z.
        frame: c and s.
    """

    def __init__(self, operator: Operator, frame: Frame):
        super().__init__()
        self.operator = operator
        self.frame = frame

    @property
    def rrs(self) -> None:
        """None: what f keeps is a subspace of z."""
        return None

    def keeping(self, rrs: Subspace, what: Kept = "rotation") -> Operator:
        """Keeps a subspace of h: f is kept off `span(s ⊙ U)`, so that with `rotation` `P_rrs h` does not change."""
        return self.changed(operator=self.operator.keeping(self.frame.seen(rrs), what))

    def starting(self, h: Float[Tensor, "rows d"]) -> Int[Tensor, " rows"]:
        return self.operator.starting(self.frame(h))

    def edited(
        self, h: Float[Tensor, "*tokens d"], step: Tensor | None, choice: Tensor | None
    ) -> Float[Tensor, "*tokens d"]:
        # The change alone is mapped back: what f leaves alone stays the same to the last bit.
        z = self.frame(h)
        change = self.frame.scale.to(z.dtype) * (self._inner(choice)(z, step) - z)
        return (working(h) + change).to(h.dtype)

    def explained(
        self, h: Float[Tensor, "*tokens d"], step: Tensor | None, choice: Tensor | None
    ) -> Explanation:
        return self._inner(choice).explain(self.frame(h), step)

    def describe(self) -> str:
        return f"{self.operator.describe()}, in {self.frame.describe()}"


class Fading(_Around):
    """`h̃_t = h_t + w_t (f(h_t) − h_t)`, `w_t = max(γ^{max(0, t − until)}, least)`: steer until the refusal has begun.

    Up to step `until` it is f itself; from then on the share falls by γ with every token, to `least`.

    Args:
        operator: f.
        until: last step of full strength; 0 is the last prompt token.
        decay: γ in [0, 1).
        least: share that stays, in [0, 1].

    Raises:
        RMuseError: a negative step, γ or a share out of range.
    """

    def __init__(self, operator: Operator, until: int = 6, decay: float = 0.8, least: float = 0.0):
        super().__init__()
        if until < 0 or not 0.0 <= decay < 1.0 or not 0.0 <= least <= 1.0:
            raise RMuseError(
                f"a step ≥ 0, a decay in [0, 1) and a share in [0, 1] were required, got {until}, {decay} and {least}"
            )
        self.operator = operator
        self.until = until
        self.decay = decay
        self.least = least

    def keeping(self, rrs: Subspace, what: Kept = "rotation") -> Operator:
        """Protects f: a share of a change that keeps `P_rrs h` keeps it too."""
        return self.changed(operator=self.operator.keeping(rrs, what))

    def starting(self, h: Float[Tensor, "rows d"]) -> Int[Tensor, " rows"]:
        return self.operator.starting(h)

    def edited(
        self, h: Float[Tensor, "*tokens d"], step: Tensor | None, choice: Tensor | None
    ) -> Float[Tensor, "*tokens d"]:
        states = working(h)
        weight = self._weight(states, step).unsqueeze(-1)
        return (states + weight * (self._inner(choice)(states, step) - states)).to(h.dtype)

    def explained(
        self, h: Float[Tensor, "*tokens d"], step: Tensor | None, choice: Tensor | None
    ) -> Explanation:
        """What f explains, λ times the weight."""
        found = self._inner(choice).explain(h, step)
        if found.fraction is None:
            return found
        return replace(found, fraction=found.fraction * self._weight(found.fraction.unsqueeze(-1), step))

    def _weight(self, like: Tensor, step: Tensor | None) -> Tensor:
        if step is None:
            raise RMuseError(
                "a strength that falls needs each state's step: run the edit in a plan, or pass step="
            )
        late = (step - self.until).clamp_min(0).to(like.dtype)
        return torch.pow(torch.full_like(late, self.decay), late).clamp_min(self.least)

    def describe(self) -> str:
        return f"{self.operator.describe()}; after step {self.until} × {self.decay:g} per token, down to {self.least:g}"

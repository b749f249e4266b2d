"""The edit algebra: operators are placed, gated and chained; a plan is a value to print, edit and save.

    steer = op.SlerpToward(v, angle=acs).keeping(rrs, "rotation")
    edit = steer.at([12, 13]).on("generated").given("image").when(gate).named("pictures")
    plan = edit >> other; plan.without("gate"); plan.replace(angle=FixedFraction(0.5)); print(plan)

This file defines what a plan *is*; other files run it (in an nnsight context, as a stored nnsight edit, as hooks on the
plain model or on a TransformerLens bridge), with equal outputs in all of these places.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from jaxtyping import Bool, Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.data.example import Modality as Modality
from rmuse_interp.data.spans import DEFAULT_DELIMITERS
from rmuse_interp.edits import bundle, choices, phrases
from rmuse_interp.edits.runs import Runs
from rmuse_interp.edits.sentence import Explanation, Kept, Momentary, Per
from rmuse_interp.edits.sentence import Tokens as Tokens
from rmuse_interp.edits.state import Slice
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.models.site import Site, Where, as_site, as_sites
from rmuse_interp.parts.address import Place, addresses, replaced, without
from rmuse_interp.parts.gates import Gate
from rmuse_interp.parts.part import Part, same
from rmuse_interp.parts.subspace import Subspace


class Operator(Part, Momentary):
    """A map `h ↦ h̃` of residual-stream states, applied to each state independently."""

    _public = "operators"

    @abstractmethod
    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        """The edited states.

        Args:
            h: [*tokens, d] states; not written to.
            step: [*tokens] position − prompt_end of each state (0 at the last prompt token); only position-aware
                operators use it.
        """

    def explain(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Explanation:
        """The quantities that `forward` computes for the same states; empty for operators that have none."""
        return Explanation()

    @property
    def of_batch(self) -> bool:
        """Whether the operator is tied to the rows and columns of one padded batch."""
        return False

    def given(
        self, chosen: Bool[Tensor, "batch tokens"], call: Slice, width: int
    ) -> tuple[Bool[Tensor, "batch tokens"], Float[Tensor, "batch tokens d"]] | None:
        """The tokens that the operator overwrites and its states there; None if it edits the states it finds.

        Args:
            chosen: [batch, tokens] tokens on which the edit acts.
            call: the tokens of the forward call.
            width: number of columns of the prompts' padded batch.
        """
        return None

    def at(self, layers: Where | Iterable[Where]) -> "Edit":
        """The edit that applies this operator at one or several sites.

        Args:
            layers: 0-based decoder blocks (their outputs), `Site`s, or TransformerLens' names (`blocks.3.hook_mlp_out`).
        """
        return Edit([self], [[str(site) for site in as_sites(layers)]])

    def keeping(self, rrs: Subspace, what: Kept = "rotation") -> "Operator":
        """The same operator with the RRS protected: removed from its direction, or excluded from the edit.

        Args:
            rrs: the subspace to keep.
            what: `direction` removes the RRS from the steering direction and rotates the whole state (eq. 4.10);
                `rotation` leaves `P_rrs h` unchanged (repair D5).

        Raises:
            RMuseError: the operator has no such form.
        """
        raise RMuseError(
            f"{type(self).__name__} has no form that keeps the RRS by its {what}; steer with SlerpToward, or with "
            'Transport and "rotation"'
        )

    def __rshift__(self, other: object) -> "Plan":
        return as_plan(self) >> other


class Expression(Runs):
    """An edit or a plan: an expression that runs on a model."""

    _public = "edits"

    def __rshift__(self, other: object) -> "Plan":
        own, more = as_plan(self), as_plan(other)
        return Plan([*own, *more], own.fingerprint or more.fingerprint)

    def as_sentence(self) -> "Plan":
        return as_plan(self)

    def __rrshift__(self, other: object) -> "Plan":
        return as_plan(other) >> self

    @property
    def addresses(self) -> dict[str, Place]:
        """All parts that `without` and `replace` can name, by full address."""
        return addresses(list(as_plan(self)))

    def save(self, folder: str | Path, model: LoadedModel | None = None, **provenance: Any) -> Path:
        """Write the plan as safetensors + JSON; see `rmuse_interp.edits.bundle.save`."""
        plan = as_plan(self)
        return bundle.save(plan, list(plan), folder, plan.fingerprint, model, provenance)

    def __repr__(self) -> str:
        return self.describe()

    def _repr_html_(self) -> str:
        """A small table, for notebooks."""
        return phrases.table(as_plan(self))


class Edit(Expression):
    """One step of a plan: operators with their sites, tokens, rows and gate. Frozen.

    Built from an operator (`Operator.at`, `op.layerwise`) and refined by `on`, `given`, `when` and `named`, each of
    which returns a new edit.

    Args:
        operators: the distinct operators.
        groups: the names of the sites that each operator edits, one list per operator.
        tokens: kind of tokens to edit.
        positions: positions to edit with `tokens="positions"`.
        mask: mask of the tokens to edit with `tokens="mask"`.
        delimiters: opening and closing delimiter of a response's chain, for `chain` and `answer`.
        modality: only rows with an image (`image`) or without one (`text`); None for all rows.
        gate: steer only where it fires; None for always.
        per: whether the gate decides per `query` or per `token`.
        name: name of the edit in `without`, `replace` and ``print``.

    Raises:
        RMuseError: no sites, a site given twice, an unknown choice, or a per-token gate above the edit.
    """

    operators: Sequence[Operator]
    mask: Bool[Tensor, "rows columns"] | None

    def __init__(
        self,
        operators: Sequence[Operator],
        groups: Sequence[Sequence[str]],
        tokens: Tokens = "generated",
        positions: Sequence[int] | None = None,
        mask: Bool[Tensor, "rows columns"] | None = None,
        delimiters: Sequence[str] = DEFAULT_DELIMITERS,
        modality: Modality | None = None,
        gate: Gate | None = None,
        per: Per = "query",
        name: str | None = None,
    ):
        super().__init__()
        if not isinstance(operators, Sequence) or not all(isinstance(one, Operator) for one in operators):
            raise RMuseError(f"an edit takes a list of operators, got {operators!r}")
        if not isinstance(gate, Gate | None) or not isinstance(groups, Sequence):
            raise RMuseError(
                f"an edit takes a gate and a list of sites per operator, got {gate!r}, {groups!r}"
            )
        self.hold_parts("operators", list(operators))
        self.groups = [[str(site) for site in as_sites(group)] for group in groups]
        self.tokens: Tokens = choices.choice("tokens", tokens, get_args(Tokens))
        self.positions = None if positions is None else choices.positions(positions)
        self.hold(mask=None if mask is None else choices.mask(mask))
        self.delimiters = choices.delimiters(delimiters)
        self.modality: Modality | None = (
            None if modality is None else choices.choice("modality", modality, get_args(Modality))
        )
        self.gate = gate
        self.per: Per = choices.choice("per", per, get_args(Per))
        self.name = choices.name(name)
        if len(self.groups) != len(self.operators):
            raise RMuseError(f"each of {len(operators)} operators needs its sites, got {self.groups}")
        lowest = min(as_sites([site for group in self.groups for site in group]))
        if (tokens == "positions") != (positions is not None) or (tokens == "mask") != (mask is not None):
            raise RMuseError(
                "positions or a mask stand in the place of a kind of tokens: .on(positions=[…]) or .on(mask=…)"
            )
        if gate is not None and per == "token" and Site(gate.layer) > lowest:
            raise RMuseError(
                f"a gate per token must read at or below the edit's lowest layer {lowest.layer}, it reads at "
                f"{gate.layer}: move the gate down or the edit up"
            )

    def on(
        self,
        tokens: Tokens | None = None,
        *,
        positions: int | Iterable[int] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        delimiters: Sequence[str] | None = None,
    ) -> "Edit":
        """The same edit on other tokens.

        Args:
            tokens: `generated`, `prompt_end`, `prompt`, `response`, `all`, `image`, `chain` or `answer`.
            positions: positions among each row's unmasked tokens, counted from 0, instead of `tokens`.
            mask: boolean mask [columns] or [rows, columns] over `lens.encode(…)["input_ids"]`, instead of `tokens`.
            delimiters: opening and closing delimiter of the chain, if not `<think>` and `</think>`.

        Raises:
            RMuseError: not exactly one of `tokens`, `positions` and `mask`, an unknown kind, a negative position, or a
                mask that is not boolean.
        """
        if sum(one is not None for one in (tokens, positions, mask)) != 1:
            raise RMuseError("a kind of tokens, positions or a mask was required, one of the three")
        spans = self.delimiters if delimiters is None else delimiters
        if positions is not None:
            return self.changed(tokens="positions", positions=choices.positions(positions), mask=None)
        if mask is not None:
            return self.changed(tokens="mask", positions=None, mask=choices.mask(mask))
        return self.changed(tokens=tokens, positions=None, mask=None, delimiters=spans)

    def given(self, modality: Modality | None) -> "Edit":
        """The same edit only for rows with an image (`image`) or without one (`text`); None for all rows."""
        return self.changed(modality=modality)

    def when(self, gate: Gate | None, per: Per = "query") -> "Edit":
        """The same edit only where `gate` fires, decided once per query or per token; None for always."""
        return self.changed(gate=gate, per=per)

    def named(self, name: str) -> "Edit":
        """The same edit with a name, used by `without`, `replace` and ``print``."""
        return self.changed(name=name)

    def without(self, what: str | type[Part]) -> "Edit":
        """The edit without a gate or another optional part, by name or type; see `Plan.without`."""
        return choices.left(without([self], what))

    def replace(self, **parts: object) -> "Edit":
        """The edit with named parts replaced; see `Plan.replace`."""
        return choices.left(replaced([self], parts))

    def lacking(self, child: Part) -> "Edit | None":
        """The edit without an operator and its sites; None if it is the only operator."""
        kept = [pair for pair in zip(self.operators, self.groups, strict=True) if pair[0] is not child]
        if not kept or len(kept) == len(self.operators):
            return self if kept else None
        return self.changed(operators=[one for one, _ in kept], groups=[sites for _, sites in kept])

    @property
    def parts(self) -> list[tuple[Operator, list[Site]]]:
        """Each operator with the sites it edits."""
        return [(one, as_sites(at)) for one, at in zip(self.operators, self.groups, strict=True)]

    @property
    def sites(self) -> list[Site]:
        """The edited sites, in forward order."""
        return sorted(site for _, sites in self.parts for site in sites)

    @property
    def layers(self) -> list[int]:
        """The decoder blocks in which states are edited, ascending."""
        return sorted({site.layer for site in self.sites})

    def operator_at(self, site: Where) -> Operator | None:
        """The operator that edits the states at a site (a block's index: its output), or None."""
        where = as_site(site)
        return next((operator for operator, sites in self.parts if where in sites), None)

    def describe(self) -> str:
        """The lines that ``print`` shows."""
        return "\n".join(phrases.lines(self))


class Plan(Expression):
    """A sequence of edits. Frozen. `>>` is associative and orders edits at one site; sites follow the forward order.

    Args:
        edits: the edits, in order.
        fingerprint: record of the model it was fitted on (see `rmuse_interp.models.fingerprint`), or None.

    Raises:
        RMuseError: the same edit twice, or two edits with the same name.
    """

    edits: Sequence[Edit]

    def __init__(self, edits: Sequence[Edit], fingerprint: Mapping[str, object] | None = None):
        super().__init__()
        if not isinstance(edits, Sequence) or not all(isinstance(edit, Edit) for edit in edits):
            raise RMuseError(f"a plan takes a list of edits, got {edits!r}; chain edits with >>")
        self.hold_parts("edits", list(edits))
        self.fingerprint = None if fingerprint is None else dict(fingerprint)
        for i, edit in enumerate(edits):
            for other in edits[:i]:
                if same(edit, other):
                    raise RMuseError(
                        f"a plan holds each edit once, got it twice ({'; '.join(phrases.lines(edit))}); "
                        "change the fraction or scale of the operator for a stronger edit"
                    )
                if edit.name is not None and edit.name == other.name:
                    raise RMuseError(f"two edits are named {edit.name!r}; use .named(...) to tell them apart")

    def bound_to(self, lens: LoadedModel) -> "Plan":
        """The same plan, marked as fitted on this model; it then refuses to run on others."""
        return Plan(list(self), lens.record)

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.edits)

    def __len__(self) -> int:
        return len(self.edits)

    def __getitem__(self, index: int) -> Edit:
        return self.edits[index]

    @property
    def layers(self) -> list[int]:
        """All decoder blocks in which some edit changes states, ascending."""
        return sorted({layer for edit in self for layer in edit.layers})

    @property
    def gates(self) -> list[Gate]:
        """The distinct gates, in the order of the edits."""
        return list({id(edit.gate): edit.gate for edit in self if edit.gate is not None}.values())

    @property
    def single_pass(self) -> bool:
        """Whether all gates can decide while the steered pass runs.

        True iff every per-query gate reads the prompt as it is, before any edit has changed it, and none of the gated
        edits acts on tokens that may arrive in a chunk before the prompt's end (`image`, `positions`, `mask`).
        Otherwise the plan is "two-pass": `decide` runs first.
        """
        first = min((site for edit in self for site in edit.sites), default=None)
        gated = [(edit, edit.gate) for edit in self if edit.gate is not None and edit.per == "query"]
        return all(
            gate.prefix is None
            and gate.readout != "draft"
            and (first is None or Site(gate.layer) <= first)
            and edit.tokens not in ("image", "positions", "mask")
            for edit, gate in gated
        )

    def without(self, what: str | type[Part]) -> "Plan":
        """The plan without an edit, a gate or another optional part, or without every part of a type.

        Args:
            what: an edit's name (`pictures`), a part (`gate`, `rrs`), its full address (`pictures.gate`), a pattern
                with `*` (`*.rrs`), or a class (`op.SlerpToward`). Patterns and classes remove every match that is not
                required; an operator is removed with its layers, and with its edit if it is the only one.

        Raises:
            RMuseError: an unknown or ambiguous name (the message lists the names), or a part that is required.
        """
        return Plan(without(list(self), what), self.fingerprint)

    def replace(self, **parts: object) -> "Plan":
        """The plan with named parts replaced, see `without`: ``plan.replace(gate=g)``, ``replace(**{"a.gate": g})``."""
        return Plan(replaced(list(self), parts), self.fingerprint)

    def describe(self) -> str:
        """The lines that ``print`` shows, those of each edit in turn."""
        return "\n".join(edit.describe() for edit in self) or "no edits"

    @staticmethod
    def load(folder: str | Path, model: LoadedModel | None = None, allow: str | Sequence[str] = ()) -> "Plan":
        """The plan that `save` wrote, checked against `model` if given; see `rmuse_interp.edits.bundle.load`."""
        plan = bundle.load(folder, model, allow)
        if not isinstance(plan, Plan):
            raise RMuseError(
                f"a plan was required, {folder} holds a {type(plan).__name__}: save plans with plan.save"
            )
        return plan


def as_plan(expression: object) -> Plan:
    """Return a plan itself, or the plan of a single edit; raise `RMuseError` for anything else."""
    if isinstance(expression, Edit):
        return Plan([expression])
    if isinstance(expression, Plan):
        return expression
    raise RMuseError(
        f"a plan or an edit was required, got {type(expression).__name__}; give an operator its place with .at(layers=…)"
    )

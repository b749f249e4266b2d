"""The edit algebra: operators placed, gated and chained; a plan is a value that one prints, edits and saves.

    steer = op.SlerpToward(v, angle=acs).keeping(rrs, "rotation")
    edit = steer.at(layers=[12, 13]).on("generated").given("image").when(gate).named("pictures")
    plan = edit >> other; plan.without("gate"); plan.replace(angle=FixedFraction(0.5)); print(plan)

Here is what a plan *is*; where it runs (an nnsight context, a stored nnsight edit, hooks on the plain model or on a
TransformerLens bridge) is the business of `rmuse_interp.models`; the same plan gives equal outputs in all of them.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from jaxtyping import Float, Int
from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.edits import bridge_hooks, bundle, deciding, hooks
from rmuse_interp.edits.state import Decision
from rmuse_interp.models.encoding import Picture, Prompt
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.parts.address import Place, addresses, replaced, without
from rmuse_interp.parts.gates import Gate
from rmuse_interp.parts.part import Part, same
from rmuse_interp.parts.subspace import Subspace

Tokens = Literal["generated", "prompt_end", "prompt", "response", "all"]
"""`generated`: positions ≥ prompt_end; `response`: > it; `prompt`: ≤ it, behind images, special tokens before it aside;
`all`: all but image tokens and padding."""
Modality = Literal["image", "text"]
"""Rows with an image, or without one."""
Kept = Literal["direction", "rotation"]
"""What an operator that keeps the RRS is cleared of it: the direction it steers to, or the rotation of the state."""
Per = Literal["query", "token"]
"""A gate decides once per query, from its read-out, or for each token from that token's own state."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """What an operator decides about each state before it edits it; None where it has no such quantity.

    Attributes:
        theta_tar: `∠(u(h), ẑ*)`, radians: how far the refusal target is away; NaN where the operator leaves the state.
        theta_dir: `∠(u(h), v̂)`, radians: how far the direction is away; likewise.
        fraction: λ, the share of the angle that h is rotated by; 0 where the operator leaves the state.
        prototype: index of the chosen refusal prototype among the operator's own, −1 where none was.
    """

    theta_tar: Float[Tensor, "*tokens"] | None = None
    theta_dir: Float[Tensor, "*tokens"] | None = None
    fraction: Float[Tensor, "*tokens"] | None = None
    prototype: Int[Tensor, "*tokens"] | None = None


class Operator(Part):
    """`h ↦ h̃` for states of the residual stream, row by row: no state looks at another one."""

    _public = "operators"

    @abstractmethod
    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        """The edited states.

        Args:
            h: [*tokens, d] states; not written to.
            step: position − prompt_end of each state (0 at the last prompt token); only operators that know
                the position read it.
        """

    def explain(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Explanation:
        """What `forward` decides about the same states, by the same functions; nothing, where it decides nothing."""
        return Explanation()

    def at(self, layers: Sequence[int]) -> "Edit":
        """The edit that applies this operator to the outputs of decoder blocks `layers` (0-based)."""
        return layerwise(dict.fromkeys(layers, self))

    def keeping(self, rrs: Subspace, what: Kept = "rotation") -> "Operator":
        """The same operator with the RRS kept: cleared from its directions, or acting inside the complement only.

        Args:
            rrs: the subspace to keep.
            what: `direction` clears the direction steered to and rotates the whole state (eq. 4.10); `rotation` leaves
                `P_rrs h` as it is (repair D5).

        Raises:
            RMuseError: an operator without that form.
        """
        raise RMuseError(
            f"{type(self).__name__} has no form that keeps the RRS by its {what}; steer with SlerpToward, or with "
            'Transport and "rotation"'
        )


class Edit(Part):
    """Where (blocks), on which tokens, for which rows and if (gate) operators act: one step of a plan. Frozen.

    Built from an operator (`Operator.at`, `op.layerwise`) and refined by `on`, `given`, `when` and `named`, each of
    which returns a new edit.

    Args:
        operators: the distinct operators.
        groups: for each operator, the 0-based decoder blocks whose output it edits.
        tokens: which tokens.
        modality: only rows with an image (`image`) or without one (`text`); None for all rows.
        gate: steer only where it fires; None for always.
        per: the gate decides per `query` or per `token`.
        name: what `without`, `replace` and ``print`` call this edit.

    Raises:
        RMuseError: no layers, a negative or repeated one, an unknown choice, a per-token gate above the edit.
    """

    _public = "edits"
    operators: Sequence[Operator]

    def __init__(
        self,
        operators: Sequence[Operator],
        groups: Sequence[Sequence[int]],
        tokens: Tokens = "generated",
        modality: Modality | None = None,
        gate: Gate | None = None,
        per: Per = "query",
        name: str | None = None,
    ):
        super().__init__()
        self.hold_parts("operators", list(operators))
        self.groups = [[int(layer) for layer in group] for group in groups]
        self.tokens: Tokens = _choice("tokens", tokens, get_args(Tokens))
        self.modality: Modality | None = (
            None if modality is None else _choice("modality", modality, get_args(Modality))
        )
        self.gate = gate
        self.per: Per = _choice("per", per, get_args(Per))
        self.name = name
        flat = [layer for group in self.groups for layer in group]
        if not flat or min(flat) < 0 or len({*flat}) < len(flat) or len(self.groups) != len(self.operators):
            raise RMuseError(
                f"an edit needs distinct 0-based layers, one operator each, got {self.groups}; "
                "chain edits with >> to act twice at one layer"
            )
        if not all(isinstance(one, Operator) for one in operators) or not isinstance(gate, Gate | None):
            raise RMuseError(f"an edit takes operators and a gate, got {operators} and {gate!r}")
        if gate is not None and per == "token" and gate.layer > min(flat):
            raise RMuseError(
                f"a gate per token must read at or below the edit's lowest layer {min(flat)}, it reads at "
                f"{gate.layer}: move the gate down or the edit up"
            )

    @classmethod
    def from_layers(cls, operators: Mapping[int, Operator]) -> "Edit":
        """The edit with ``{layer: operator}``; layers that share an operator hold it once."""
        distinct = {id(operators[layer]): operators[layer] for layer in sorted(operators)}.values()
        groups = [[layer for layer in sorted(operators) if operators[layer] is one] for one in distinct]
        return cls(list(distinct), groups)

    def on(self, tokens: Tokens) -> "Edit":
        """The same edit on other tokens: `generated`, `prompt_end`, `prompt`, `response` or `all`."""
        return self.changed(tokens=tokens)

    def given(self, modality: Modality | None) -> "Edit":
        """The same edit for rows with an image (`image`) or without (`text`) only."""
        return self.changed(modality=modality)

    def when(self, gate: Gate | None, per: Per = "query") -> "Edit":
        """The same edit where `gate` fires only, decided per query (and remembered) or per token."""
        return self.changed(gate=gate, per=per)

    def named(self, name: str) -> "Edit":
        """The same edit under a name, for `without`, `replace` and ``print``."""
        return self.changed(name=name)

    def lacking(self, child: Part) -> "Edit | None":
        """The edit without an operator and the layers it acts on; None where it is the only one."""
        kept = [
            (one, group) for one, group in zip(self.operators, self.groups, strict=True) if one is not child
        ]
        if len(kept) == len(self.operators):
            return self
        return (
            self.changed(operators=[one for one, _ in kept], groups=[at for _, at in kept]) if kept else None
        )

    @property
    def layers(self) -> list[int]:
        """The decoder blocks whose output is edited, ascending."""
        return sorted(layer for group in self.groups for layer in group)

    def operator_at(self, layer: int) -> Operator | None:
        """The operator that edits the output of decoder block `layer`, or None."""
        for operator, group in zip(self.operators, self.groups, strict=True):
            if layer in group:
                return operator
        return None

    def __rshift__(self, other: "Edit | Plan") -> "Plan":
        return Plan([self]) >> other

    def describe(self) -> str:
        """The sentence that ``print`` shows."""
        where = {
            "generated": "the last prompt token and every generated one",
            "prompt_end": "the last prompt token",
            "prompt": "the question's tokens and the last prompt token",
            "response": "every generated token",
            "all": "all tokens but those of images",
        }[self.tokens]
        rows = "" if self.modality is None else f" of {self.modality} queries"
        gate = ""
        if self.gate is not None:
            gate = f", {'where' if self.per == 'token' else 'if'} {self.gate.describe()} fires"
        acts = "; ".join(
            f"at block{'s' if len(group) > 1 else ''} {', '.join(map(str, group))} {operator.describe()}"
            for operator, group in zip(self.operators, self.groups, strict=True)
        )
        return f"{'' if self.name is None else self.name + ': '}on {where}{rows}{gate}: {acts}"

    __repr__ = __str__ = describe


class Plan(Part):
    """Edits in order: `>>` is associative, orders edits at one site; across sites the forward order rules. Frozen.

    Args:
        edits: the edits, in order.
        fingerprint: record of the model it was fitted on (see `rmuse_interp.models.fingerprint`), or None.

    Raises:
        RMuseError: the same edit twice, or two edits of one name.
    """

    _public = "edits"
    edits: Sequence[Edit]

    def __init__(self, edits: Sequence[Edit], fingerprint: dict[str, Any] | None = None):
        super().__init__()
        self.hold_parts("edits", list(edits))
        self.fingerprint = fingerprint
        for i, edit in enumerate(edits):
            for other in edits[:i]:
                if same(edit, other):
                    raise RMuseError(
                        f"a plan holds each edit once, got it twice ({edit.describe()}); "
                        "change the fraction or scale of the operator for a stronger edit"
                    )
                if edit.name is not None and edit.name == other.name:
                    raise RMuseError(f"two edits are named {edit.name!r}; use .named(...) to tell them apart")

    def __rshift__(self, other: "Edit | Plan") -> "Plan":
        return Plan([*self, *as_plan(other)], self.fingerprint or getattr(other, "fingerprint", None))

    def bound_to(self, lens: Any) -> "Plan":
        """The same plan, marked as fitted on this model: others are refused from now on."""
        return Plan(list(self), lens.fingerprint.as_record())

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.edits)

    def __len__(self) -> int:
        return len(self.edits)

    def __getitem__(self, index: int) -> Edit:
        return self.edits[index]

    @property
    def layers(self) -> list[int]:
        """All decoder blocks whose output some edit changes, ascending."""
        return sorted({layer for edit in self for layer in edit.layers})

    @property
    def gates(self) -> list[Gate]:
        """The distinct gates, in the order of the edits."""
        return list({id(edit.gate): edit.gate for edit in self if edit.gate is not None}.values())

    @property
    def reads(self) -> list[int]:
        """All decoder blocks at which a gate reads, ascending."""
        return sorted({gate.layer for gate in self.gates})

    @property
    def single_pass(self) -> bool:
        """Whether all gates can decide while the steered pass runs.

        True iff every gate that decides per query reads the prompt as it is, at or below the lowest edited layer.
        Otherwise the plan is "two-pass": `decide` runs first.
        """
        queries = [edit.gate for edit in self if edit.gate is not None and edit.per == "query"]
        lowest = min(self.layers, default=0)
        return all(
            gate.prefix is None and gate.readout != "draft" and gate.layer <= lowest for gate in queries
        )

    @property
    def addresses(self) -> dict[str, Place]:
        """All that `without` and `replace` can name, by full address."""
        return addresses(list(self))

    def without(self, what: str | type[Part]) -> "Plan":
        """The plan without an edit, a gate or another optional part, or without every part of a type.

        Args:
            what: an edit's name (`pictures`), a part (`gate`, `rrs`), its full address (`pictures.gate`), a pattern
                with `*` (`*.rrs`), or a class (`op.SlerpToward`). A pattern and a class take every match that is not
                required where it stands; an operator goes with its layers, and with its edit where it is the only one.

        Raises:
            RMuseError: an unknown or ambiguous name (the names there are get listed), or a part that is required.
        """
        return Plan(without(list(self), what), self.fingerprint)

    def replace(self, **parts: Any) -> "Plan":
        """The plan with named parts exchanged (see `without`): ``plan.replace(gate=g)``, ``replace(**{"a.gate": g})``."""
        return Plan(replaced(list(self), parts), self.fingerprint)

    def describe(self) -> str:
        """The sentences that ``print`` shows, one line per edit."""
        return "\n".join(edit.describe() for edit in self) or "no edits"

    __repr__ = __str__ = describe

    def attach(self, hf_model: nn.Module, **settings: Any) -> Any:
        """Run natively on a Hugging Face model until `.detach()`; see `rmuse_interp.edits.hooks.attach`."""
        return hooks.attach(hf_model, self, **settings)

    def install(self, lens: Any, **settings: Any) -> Any:
        """Run as a stored nnsight edit of `lens` until `.remove()`; see `LensModel.install`."""
        return lens.install(self, **settings)

    def fwd_hooks(
        self,
        bridge: Any,
        prompts: Prompt | Sequence[Prompt] | None = None,
        images: Picture | Sequence[Picture] = None,
        **settings: Any,
    ) -> list[bridge_hooks.Hook]:
        """TransformerLens' `(name, function)` pairs for a bridge; see `rmuse_interp.edits.bridge_hooks.fwd_hooks`."""
        return bridge_hooks.fwd_hooks(self, bridge, prompts, images, **settings)

    def decide(
        self,
        lens: LoadedModel,
        prompts: Prompt | Sequence[Prompt],
        images: Picture | Sequence[Picture] = None,
    ) -> Decision:
        """The gates' decision from unsteered passes over the prompts; see `rmuse_interp.edits.deciding.decide`."""
        return deciding.decide(lens, self, prompts, images)

    def save(self, folder: str | Path, model: Any = None, **provenance: Any) -> Path:
        """Write the plan as safetensors + JSON; see `rmuse_interp.edits.bundle.save`."""
        return bundle.save(self, folder, model, provenance)

    @staticmethod
    def load(folder: str | Path, model: Any = None, allow: str | Sequence[str] = ()) -> "Plan":
        """The plan that `save` wrote, checked against `model` if given; see `rmuse_interp.edits.bundle.load`."""
        return cast(Plan, bundle.load(folder, model, allow))


def as_plan(expression: object) -> Plan:
    """The plan itself, or the plan of a single edit."""
    if isinstance(expression, Edit):
        return Plan([expression])
    if isinstance(expression, Plan):
        return expression
    raise RMuseError(
        f"a plan or an edit was required, got {type(expression).__name__}; give an operator its place with .at(layers=…)"
    )


def _choice(what: str, value: Any, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise RMuseError(f"{what} out of {', '.join(choices)} was required, got {value!r}")
    return value


def layerwise(operators: Mapping[int, Operator]) -> "Edit":
    """The edit with one operator per decoder block, as ``{layer: operator}``; an operator may serve several.

    Raises:
        RMuseError: no layers, or a negative one.
    """
    return Edit.from_layers(operators)

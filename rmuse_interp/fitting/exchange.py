"""Moving a person's cluster between the two sides of a gate, and back to the bit.

Any `IdentityGate` will do; combinations are gone through, and every gate in them that knows people is changed. No model
is seen here: states come as arrays, and what a gate loses is kept as plain JSON.
"""

import base64
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.data.store import JSON
from rmuse_interp.fitting import hashed
from rmuse_interp.parts.gates import Gate, IdentityGate, Side
from rmuse_interp.parts.part import same

Request = Literal["forget", "restore"]
"""One person more to forget, or one less."""

States = tuple[Tensor, Tensor]
"""One person's states where a gate reads: [questions, d] of their own questions, [harmless, d] of harmless ones."""


def label_of(person: str) -> str:
    """The hash that stands for a person in a bundle."""
    return hashed([person])[0]


def knows_people(gate: Gate) -> bool:
    """Whether a gate, or a gate in a combination, knows people one by one; what stands behind a `Not` does not count."""
    children = getattr(gate, "gates", ())
    return isinstance(gate, IdentityGate) or any(knows_people(child) for child in children)


def rewritten(gate: Gate, path: str, change: Callable[[str, IdentityGate], IdentityGate]) -> Gate:
    """The gate with every part of it that knows people one by one changed; `change` is told where the part stands."""
    if isinstance(gate, IdentityGate):
        return change(path, gate)
    children = getattr(gate, "gates", None)
    if not isinstance(children, nn.ModuleList):
        return gate
    combination = cast(Any, type(gate))
    return cast(
        Gate, combination([rewritten(cast(Gate, g), f"{path}/{i}", change) for i, g in enumerate(children)])
    )


def exchanged(
    gate: IdentityGate, person: str, states: States, request: Request
) -> tuple[IdentityGate, JSON | None]:
    """The gate with a person on the other side, and a note (plain JSON) for `undone` to take that back.

    Harmless questions about a person to forget are a cluster that must not be steered, as in `gather`. The note is None,
    and the gate itself comes back, where it has no say: it read no question of the person.
    """
    (own, harmless), who, benign = states, label_of(person), label_of(f"benign {person}")
    if not len(own) or (request == "restore" and who not in gate.labels):
        return gate, None
    took: list[tuple[Side, str]] = [("other", who)] if request == "forget" else [("forget", who)]
    gave: list[tuple[Side, str, Tensor]] = [("forget" if request == "forget" else "other", who, own)]
    if request == "forget" and len(harmless):
        took.append(("other", benign))
        gave.append(("other", benign, harmless))
    taken = []
    for side, label in took:
        if label in (gate.labels if side == "forget" else gate.other_labels):
            less = gate.without_cluster(label, side=side)
            taken.append({"side": side, "label": label, "held": _held(gate, label, side, less)})
            gate = less
    for side, label, given in gave:
        gate = gate.with_cluster(label, given, side=side)
    return gate, {"put": [[side, label] for side, label, _ in gave], "taken": taken}


def undone(gate: IdentityGate, note: JSON, read: Callable[[], States]) -> IdentityGate:
    """The gate with what `exchanged` put taken out, and what it took put back.

    Args:
        gate: as `exchanged` left it; other people may have moved since.
        note: of `exchanged`.
        read: the person's states, asked for where the gate's own could not be kept.
    """
    who = note["put"][0][1]
    for side, label in note["put"]:
        gate = gate.without_cluster(label, side=side)
    for one in reversed(note["taken"]):
        if one["held"] is not None:
            gate = _returned(gate, one["held"])
        else:
            states = read()[0 if one["label"] == who else 1]
            gate = gate.with_cluster(one["label"], states, side=one["side"])
    return gate


def _held(gate: IdentityGate, label: str, side: Side, less: IdentityGate) -> JSON | None:
    """What a gate held of a cluster that `less` lacks, as plain JSON: an entry of lists, a row of tensors.

    None where that does not bring the gate back to the bit: for gates that keep a cluster in another form.
    """
    at = (gate.labels if side == "forget" else gate.other_labels).index(label)
    whole, rest = gate.arguments(), less.arguments()
    try:
        held: JSON = {"at": at, "entries": {}, "rows": {}}
        for name, value in whole.items():
            if isinstance(value, Tensor) and not torch.equal(value, rest[name]):
                held["rows"][name] = base64.b64encode(value[at].cpu().numpy().tobytes()).decode()
            elif isinstance(value, list) and value != rest[name]:
                held["entries"][name] = value[at]
        return held if same(_returned(less, held), gate) else None
    except (RMuseError, RuntimeError, TypeError, IndexError, ValueError):
        return None


def _returned(gate: IdentityGate, held: JSON) -> IdentityGate:
    """The gate with what `_held` kept of a cluster, where it stood (at the end, where the gate has become shorter)."""
    own, at = gate.arguments(), held["at"]
    back: JSON = {}
    for name, value in held["entries"].items():
        back[name] = [*own[name][:at], value, *own[name][at:]]
    for name, text in held["rows"].items():
        full = own[name]
        row = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=full.dtype).reshape(full[:1].shape)
        back[name] = torch.cat([full[:at], row.to(full.device), full[at:]])
    return gate.changed(**back)

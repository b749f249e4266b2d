"""Move a person's cluster between the two sides of a gate, and restore it bit for bit.

Any `IdentityScorer` works; in a combination of gates, every gate that knows people is changed. No model is needed here:
states come as arrays, and what a gate loses is kept as plain JSON.
"""

import base64
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.data.store import JSON
from rmuse_interp.fitting import hashed
from rmuse_interp.parts.gates import AllOf, AnyOf, Gate, IdentityScorer, Read, Side
from rmuse_interp.parts.part import same

Request = Literal["forget", "restore"]
"""Forget one more person, or restore one."""

States = tuple[Tensor, Tensor]
"""One person's states where a gate reads: [questions, d] for their own questions, [harmless, d] for harmless ones."""


def label_of(person: str) -> str:
    """Return the hash that represents a person in a bundle."""
    return hashed([person])[0]


def knows_people(gate: Gate) -> bool:
    """Whether a gate, or one in a combination, knows people one by one; gates inside a `Not` do not count."""
    scorer = gate.scorer
    if isinstance(scorer, AllOf | AnyOf):
        return any(knows_people(child) for child in scorer.gates)
    return isinstance(scorer, IdentityScorer)


def rewritten(gate: Gate, path: str, change: Callable[[str, Read, IdentityScorer], IdentityScorer]) -> Gate:
    """Return the gate after changing every scorer in it that knows people one by one.

    Args:
        gate: such a gate, or a combination of gates.
        path: path of the gate in the plan.
        change: function of the scorer's path, its readout and the scorer; returns the new scorer.
    """
    scorer = gate.scorer
    if isinstance(scorer, IdentityScorer):
        return gate.changed(scorer=change(path, gate.reads, scorer))
    if isinstance(scorer, AllOf | AnyOf):
        gates = [rewritten(child, f"{path}/{i}", change) for i, child in enumerate(scorer.gates)]
        return gate.changed(scorer=scorer.changed(gates=gates))
    return gate


def exchanged(
    scorer: IdentityScorer, person: str, states: States, request: Request
) -> tuple[IdentityScorer, JSON | None]:
    """Return the scorer with a person on the other side, and a note (plain JSON) with which `undone` reverts that.

    Harmless questions about a person to forget are a cluster that must not be steered, as in `gather`. If the scorer
    read no question of the person, it is returned unchanged, and the note is None.
    """
    (own, harmless), who, benign = states, label_of(person), label_of(f"benign {person}")
    if not len(own) or (request == "restore" and who not in scorer.labels):
        return scorer, None
    took: list[tuple[Side, str]] = [("other", who)] if request == "forget" else [("forget", who)]
    gave: list[tuple[Side, str, Tensor]] = [("forget" if request == "forget" else "other", who, own)]
    if request == "forget" and len(harmless):
        took.append(("other", benign))
        gave.append(("other", benign, harmless))
    taken = []
    for side, label in took:
        if label in (scorer.labels if side == "forget" else scorer.other_labels):
            less = scorer.without_cluster(label, side=side)
            taken.append({"side": side, "label": label, "held": _held(scorer, label, side, less)})
            scorer = less
    for side, label, given in gave:
        scorer = scorer.with_cluster(label, given, side=side)
    return scorer, {"put": [[side, label] for side, label, _ in gave], "taken": taken}


def undone(scorer: IdentityScorer, note: JSON, read: Callable[[], States]) -> IdentityScorer:
    """Return the scorer without what `exchanged` added and with what it removed.

    Args:
        scorer: the scorer that `exchanged` returned; other people may have moved since.
        note: the note from `exchanged`.
        read: function that returns the person's states; called only if the scorer's own could not be kept.
    """
    who = note["put"][0][1]
    for side, label in note["put"]:
        scorer = scorer.without_cluster(label, side=side)
    for one in reversed(note["taken"]):
        if one["held"] is not None:
            scorer = _returned(scorer, one["held"])
        else:
            states = read()[0 if one["label"] == who else 1]
            scorer = scorer.with_cluster(one["label"], states, side=one["side"])
    return scorer


def _held(scorer: IdentityScorer, label: str, side: Side, less: IdentityScorer) -> JSON | None:
    """Return, as plain JSON, the parts of a cluster that `less` lacks: entries of lists, rows of tensors.

    None if these cannot restore the scorer bit for bit, as for scorers that store clusters in another form.
    """
    at = (scorer.labels if side == "forget" else scorer.other_labels).index(label)
    whole, rest = scorer.arguments(), less.arguments()
    try:
        held: JSON = {"at": at, "entries": {}, "rows": {}}
        for name, value in whole.items():
            if isinstance(value, Tensor) and not torch.equal(value, rest[name]):
                held["rows"][name] = base64.b64encode(value[at].cpu().numpy().tobytes()).decode()
            elif isinstance(value, list) and value != rest[name]:
                held["entries"][name] = value[at]
        return held if same(_returned(less, held), scorer) else None
    except (RMuseError, RuntimeError, TypeError, IndexError, ValueError):
        return None


def _returned(scorer: IdentityScorer, held: JSON) -> IdentityScorer:
    """Return the scorer with the parts that `_held` kept, at their old index, or at the end of a now shorter list."""
    own, at = scorer.arguments(), held["at"]
    back: JSON = {}
    for name, value in held["entries"].items():
        back[name] = [*own[name][:at], value, *own[name][at:]]
    for name, text in held["rows"].items():
        full = own[name]
        row = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=full.dtype).reshape(full[:1].shape)
        back[name] = torch.cat([full[:at], row.to(full.device), full[at:]])
    return scorer.changed(**back)

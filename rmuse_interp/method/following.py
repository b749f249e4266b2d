"""Targets of a whole answer, built from `Evidence`: along the model's own refusals, and in a centred, scaled stream."""

from collections import Counter
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import energy_rank
from rmuse_interp.method.rmuse import Evidence
from rmuse_interp.parts.angle import ACS
from rmuse_interp.parts.frame import Frame
from rmuse_interp.parts.prototypes import Prototypes
from rmuse_interp.parts.subspace import Subspace
from rmuse_interp.parts.unlearning import UnlearningSubspace

MOST: Final = 4
"""The most trajectories of one kind of response."""
ROOM: Final = 0.99
"""Share of the way to the refusals, in squared length, that the RRS must leave free."""


@dataclass(frozen=True, eq=False)
class Paths:
    """The trajectories of one block, and the questions that choose among them.

    Attributes:
        points: mean state per step over the refusals with the same words.
        lengths: number of states of each.
        keys: last-token states of fitting questions.
        owner: the trajectory that each of them draws.
        texts: the words of each, by number in `Evidence.refusals`.
        own: whether the model itself said each.
    """

    points: Float[Tensor, "trajectories steps d"]
    lengths: Int[Tensor, " trajectories"]
    keys: Float[Tensor, "keys d"]
    owner: Int[Tensor, " keys"]
    texts: tuple[int, ...]
    own: tuple[bool, ...]


def paths(evidence: Evidence, layer: int, most: int = MOST) -> Paths:
    """The most frequent refusals of each kind of response (stepwise, direct), the model's own before imposed ones.

    A question draws the refusal that the model gave to it; where that is not among those kept, or none was given, the
    questions of a kind take turns, so that words vary.

    Args:
        evidence: of one kind of query, with the runs of `gather`.
        layer: a collected block.
        most: the most trajectories per kind.

    Raises:
        RMuseError: evidence without runs.
    """
    if evidence.run is None or evidence.starts is None or not evidence.run_own:
        raise RMuseError(
            "evidence with refusals run by run was required, got none: collect it with gather(...)"
        )
    states = evidence.tokens[:, evidence.layers.index(layer)]
    first = [int((evidence.run == i).nonzero()[0]) for i in range(len(evidence.run_own))]
    texts = evidence.template[first].tolist()
    chosen: list[tuple[bool, int]] = []
    for kind in dict.fromkeys(evidence.run_stepwise):
        mine = [i for i, stepwise in enumerate(evidence.run_stepwise) if stepwise == kind]
        mine = [i for i in mine if evidence.run_own[i]] or mine
        chosen += [(kind, text) for text, _ in Counter(texts[i] for i in mine).most_common(most)]
    means, own = [], []
    for kind, text in chosen:
        runs = [i for i, t in enumerate(texts) if t == text and evidence.run_stepwise[i] == kind]
        runs = [i for i in runs if evidence.run_own[i]] or runs
        each = [states[evidence.run == i] for i in runs]
        steps = min(map(len, each))
        means.append(torch.stack([one[:steps] for one in each]).double().mean(dim=0))
        own.append(evidence.run_own[runs[0]])
    points = torch.nn.utils.rnn.pad_sequence(means, batch_first=True)
    turn: Counter[bool] = Counter()
    owner = []
    for text, kind in zip(evidence.start_text, evidence.start_stepwise, strict=True):
        if (kind, text) not in chosen:
            mine = [i for i, (k, _) in enumerate(chosen) if k == kind] or list(range(len(chosen)))
            owner.append(mine[turn[kind] % len(mine)])
            turn[kind] += 1
        else:
            owner.append(chosen.index((kind, text)))
    return Paths(
        points.float(),
        torch.tensor([len(one) for one in means]),
        evidence.starts.at(layer),
        torch.tensor(owner),
        tuple(text for _, text in chosen),
        tuple(own),
    )


def frame_of(evidence: Evidence, layer: int) -> Frame:
    """The frame of a block: mean and spread of the states of all that is to be retained."""
    kept = [side[span].at(layer) for side in (evidence.step, evidence.direct) for span in side]
    prompts = evidence.readouts["last"]
    kept.append(prompts.select([i for i in prompts.ids if i in evidence.others]).at(layer))
    return Frame.of(torch.cat(kept))


def follow(evidence: Evidence, layer: int, unlearning: UnlearningSubspace) -> op.Operator:
    """Along one of the model's own refusals, chosen once per answer, its end of turn included; then left alone."""
    found = paths(evidence, layer)
    return op.Follow(found.points, found.lengths, found.keys, found.owner, frame=frame_of(evidence, layer))


def follow_one(evidence: Evidence, layer: int, unlearning: UnlearningSubspace) -> op.Operator:
    """Along the one refusal of each kind that the model gives most often."""
    found = paths(evidence, layer, most=1)
    return op.Follow(found.points, found.lengths, found.keys, found.owner, frame=frame_of(evidence, layer))


def shifted(evidence: Evidence, layer: int, unlearning: UnlearningSubspace) -> op.Operator:
    """The mean difference to the model's refusals, added until the refusal has begun (`Fading`)."""
    return op.Fading(op.Add(_difference(evidence, layer)), until=6, decay=0.8, least=0.4)


def turned(evidence: Evidence, layer: int, unlearning: UnlearningSubspace) -> op.Operator:
    """ACS in the centred, scaled stream: toward the mean difference, as far as the nearest refusal state is away."""
    frame = frame_of(evidence, layer)
    states = frame(evidence.tokens[:, evidence.layers.index(layer)])
    prototypes = Prototypes.token_level(states, evidence.position, evidence.template)
    direction = _difference(evidence, layer) / frame.scale
    turn = op.Framed(op.SlerpToward(direction, ACS(prototypes, "nearest")), frame)
    return op.Fading(turn, until=6, decay=0.8, least=0.4)


def _difference(evidence: Evidence, layer: int) -> Float[Tensor, " d"]:
    """Mean state along the model's refusals less the mean state along its own responses."""
    refusing = evidence.tokens[evidence.position > 0][:, evidence.layers.index(layer)].mean(dim=0)
    own = torch.cat([pooled.at(layer) for pooled in evidence.own.values()]).mean(dim=0)
    return refusing - own


def making_room(rrs: Subspace, evidence: Evidence, layer: int) -> Subspace:
    """What is left of the RRS beside the way to the refusals: `RRS ⊖ U`, so that a state can arrive.

    U holds the share `ROOM` of the squared length of all moves `p_{j,t} − h`, h the mean states of questions and own
    responses. In a pretrained model the RRS would otherwise hold the massive dimensions in place, and a refusal's first
    word slips. Every direction that remains is orthogonal to U.
    """
    found = paths(evidence, layer)
    assert evidence.starts is not None
    own = torch.cat([pooled.at(layer) for pooled in evidence.own.values()])
    start = evidence.starts.at(layer).double().mean(dim=0)
    along = own.double().mean(dim=0)
    moves = [
        points[:n].double() - torch.stack([start, *[along] * (n - 1)])
        for points, n in zip(found.points, found.lengths.tolist(), strict=True)
    ]
    _, lengths, directions = torch.linalg.svd(torch.cat(moves), full_matrices=False)
    rank = energy_rank(lengths, ROOM)
    return rrs.minus(Subspace(directions[:rank].mT.contiguous().float()))

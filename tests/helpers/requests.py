"""Fits whose gates know people, for requests to forget and to restore."""

import torch

from rmuse_interp.fitting import assemble
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.parts.gates import (
    AllOf,
    Gate,
    IdentityRatio,
    IdentityScorer,
    fit_clusters,
    fit_discriminant,
    fit_identity_ratio,
)

LAYER = 2
KINDS = ("vmf", "mahalanobis", "ratio", "both")


def leaf(one: RMuse, modality: str = "image") -> Gate:
    gate = one.gates[modality]
    return gate.scorer.gates[0] if isinstance(gate.scorer, AllOf) else gate


def clusters(gate: IdentityScorer) -> dict[tuple[str, str], torch.Tensor]:
    """(side, label) → all that a gate holds of the cluster."""
    forget, others = gate.forget, gate.others
    if isinstance(gate, IdentityRatio):
        forget, others = (
            torch.cat([means, counts.unsqueeze(1)], dim=1)
            for means, counts in ((forget, gate.counts), (others, gate.other_counts))
        )
    sides = (("forget", gate.labels, forget), ("other", gate.other_labels, others))
    return {
        (side, name): mean for side, names, means in sides for name, mean in zip(names, means, strict=True)
    }


def fits_by_kind(lens, benchmark, evidence) -> dict[str, RMuse]:
    """A fit whose gates are clusters of either kind, alone or in a combination."""
    base = assemble(lens, benchmark, evidence, layers=[3])
    found = {}
    for kind in KINDS:
        gates = {}
        for modality, seen in evidence.items():
            pooled = seen.readouts["question"]
            rows = {name: i for i, name in enumerate(pooled.ids)}
            sides = []
            for ids in (seen.forget, seen.others):
                sides += [pooled.at(LAYER)[[rows[i] for i in ids]], [seen.people[i] for i in ids]]
            where = {"layer": LAYER, "readout": "question"}
            if kind == "ratio":
                gate = fit_identity_ratio(*sides, **where)
            else:
                gate = fit_clusters(*sides, **where, kind="vmf" if kind == "vmf" else "mahalanobis")
            gate = gate.at_threshold(-0.1)
            if kind == "both":
                gate = gate & fit_discriminant(sides[0], sides[2], layer=LAYER, readout="question")
            gates[f"{modality}.gate"] = gate
        found[kind] = RMuse(base.plan.replace(**gates), base.subspaces, base.report)
    return found

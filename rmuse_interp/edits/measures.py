"""Measure what an edit did to the states at one site: angles, norms, the share of the update in the RRS."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rmuse_interp.edits.sentence import Clause, Verb
from rmuse_interp.edits.state import beside
from rmuse_interp.maths.linalg import working
from rmuse_interp.maths.sphere import geodesic, norm, unit
from rmuse_interp.models.site import Site
from rmuse_interp.parts.retain import Subspaces
from rmuse_interp.parts.subspace import Subspace


@dataclass(frozen=True, eq=False)
class Seen:
    """One edit at one block in one call: states before and after, chosen tokens, a per-token gate, what is kept to."""

    before: Tensor
    after: Tensor
    chosen: Tensor | None
    score: Tensor | None
    fired: Tensor | None
    held: Tensor | None = None


def quantities(
    operator: Verb, rrs: Subspace | None, kept: Sequence[Seen], step: Int[Tensor, "rows tokens"]
) -> dict[str, Tensor]:
    """The measured quantities of one site over some calls, by name, [rows, tokens] each."""
    before, after = (torch.cat([getattr(k, side) for k in kept], dim=1) for side in ("before", "after"))
    states, moved, step = working(before), working(after), step.to(before.device)
    nothing = torch.full_like(states[..., 0], torch.nan)
    no, none = torch.zeros_like(step, dtype=torch.bool), torch.full_like(step, -1)
    acted = torch.cat(
        [
            torch.zeros_like(k.before[..., 0], dtype=torch.bool) if k.chosen is None else k.chosen
            for k in kept
        ],
        dim=1,
    )
    found = dict.fromkeys(("theta_tar", "theta_dir", "fraction", "rrs_share"), nothing)
    found |= {"prototype": none, "angle": torch.zeros_like(nothing), "score": nothing, "fired": no}
    if any(k.chosen is not None for k in kept):
        operator, held = beside(operator, before), kept[-1].held
        choosing = operator if held is None else operator.along(held.unsqueeze(-1).expand_as(step))
        said = choosing.explain(before, step)
        for name in ("theta_tar", "theta_dir", "fraction"):
            value = getattr(said, name)
            found[name] = nothing if value is None else torch.where(acted, value.to(nothing.dtype), torch.nan)
        if said.prototype is not None:
            found["prototype"] = torch.where(acted, said.prototype, -1)
        found["angle"] = torch.where(acted, geodesic(unit(states), unit(moved)), 0.0)
        if rrs is not None:
            update = moved - states
            inside, whole = (x.square().sum(dim=-1) for x in (beside(rrs, update).project(update), update))
            found["rrs_share"] = torch.where(acted & (whole > 0), inside / whole, torch.nan)
    if kept[0].fired is not None:
        found["score"] = torch.cat([k.score for k in kept if k.score is not None], dim=1).to(nothing.dtype)
        found["fired"] = torch.cat([k.fired for k in kept if k.fired is not None], dim=1)
    lengths = {"norm_before": norm(states).squeeze(-1), "norm_after": norm(moved).squeeze(-1)}
    floats = {name: x.float() if x.is_floating_point() else x for name, x in (found | lengths).items()}
    return floats | {"acted": acted}


def protection(edit: Clause, site: Site, operator: Verb, subspaces: Subspaces | None) -> Subspace | None:
    """The RRS of a site: the operator's own, if it keeps one in either form, else the bundle's."""
    own = getattr(operator, "rrs", None)
    if isinstance(own, Subspace):
        return own
    key = f"{edit.modality}-{site.layer}"
    return None if subspaces is None or key not in subspaces.retain else subspaces.retain[key].subspace

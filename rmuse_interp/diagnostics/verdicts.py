"""Hidden or in sight: verdicts on probe scores before and after steering, by a fixed rule.

Steering **hides** something at a block if it was readable before (`Score.readable`) and the old read-out (the
same probe, never trained on steered states) now reads significantly less: the 95 % interval of the drop lies above 0. It
is **not gone** where a probe trained on steered states still reads it. A linear probe that finds nothing does not show
that there is nothing: no verdict says "gone".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rmuse_interp import RMuseError
from rmuse_interp.diagnostics.probes import Score
from rmuse_interp.maths.statistics import Estimate

Kind = Literal["hidden", "lost here", "in sight", "unread", "read anew"]


@dataclass(frozen=True)
class Verdict:
    """What steering did to what could be read at one place.

    Attributes:
        kind: ``unread``: not readable before steering at any block. ``in sight``: the read-out of before works as well
            after. ``hidden``: at some blocks it does not, and a probe trained anew reads it at one of them at least.
            ``lost here``: at some blocks it does not, and none trained anew reads it there, or there is none.
            ``read anew``: there are no states of before to compare with, and a probe trained anew reads it.
        hidden_from: the lowest block where the read-out of before reads less; None where there is none.
        back_from: the lowest block above that where it was readable and is read as well again; None where there is none.
        before: the blocks where it is readable before.
        after: the blocks where a probe trained on steered states (or on untouched ones) reads it.
    """

    kind: Kind
    hidden_from: int | None
    back_from: int | None
    before: tuple[int, ...]
    after: tuple[int, ...]


def judge(
    before: Mapping[int, Score],
    drops: Mapping[int, Estimate],
    after: Mapping[int, Score],
) -> Verdict:
    """The verdict, block by block.

    Args:
        before: scores on unsteered states; empty where there are none to compare with.
        drops: by how much the same probes read less on steered states of these blocks.
        after: scores of probes trained on steered states; empty where none can be trained.

    Raises:
        RMuseError: other blocks before than after.
    """
    if before.keys() != drops.keys() or (before and after and before.keys() != after.keys()):
        raise RMuseError("scores of the same blocks before and after were required, they differ")
    was = tuple(layer for layer in sorted(before) if before[layer].readable)
    still = tuple(layer for layer in sorted(after) if after[layer].readable)
    less = [layer for layer in was if drops[layer].low > 0]
    hidden = less[0] if less else None
    back = next((layer for layer in was if hidden is not None and layer > hidden and layer not in less), None)
    kind: Kind
    if not before and still:
        kind = "read anew"
    elif not was:
        kind = "unread"
    elif not less:
        kind = "in sight"
    else:
        kind = "hidden" if set(less) & set(still) else "lost here"
    return Verdict(kind, hidden, back, was, still)


def conclusion(verdicts: Mapping[str, Verdict]) -> str:
    """Summarise all places in one sentence: "hidden, not gone" if it is hidden at one place and readable at any."""
    hidden = {p: v for p, v in verdicts.items() if v.hidden_from is not None}
    found = {p: v.after for p, v in verdicts.items() if v.after}
    if not any(v.before for v in verdicts.values()):
        return "not readable before steering either: nothing can be said about hiding"
    if not hidden:
        return "in sight: the probes of before read it as well after steering, wherever they did"
    said = "; ".join(
        f"{p} from block {v.hidden_from} on"
        + ("" if v.back_from is None else f" (back at block {v.back_from})")
        for p, v in hidden.items()
    )
    if not found:
        return f"read-outs of before read less at {said}, and no probe finds it elsewhere: that does not show it gone"
    still = f"probes trained anew still read it at {_where(found)}"
    return f"hidden, not gone: read-outs of before read less at {said}; {still}"


def _where(found: Mapping[str, tuple[int, ...]]) -> str:
    return "; ".join(f"{place} (blocks {spelled(blocks)})" for place, blocks in found.items())


def spelled(blocks: Sequence[int]) -> str:
    """Write block numbers with runs joined.

    >>> spelled([0, 1, 2, 5, 7, 8])
    '0–2, 5, 7–8'
    """
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs)

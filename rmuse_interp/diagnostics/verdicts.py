"""Hidden or in sight: what scores of probes before and after steering say, by a stated rule.

The rule is `Score.readable`, block by block. A linear probe that finds nothing does not show that there is nothing: no
verdict says "gone".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rmuse_interp.diagnostics.probes import Score
from rmuse_interp.errors import RMuseError

Kind = Literal["hidden", "lost here", "in sight", "unread"]


@dataclass(frozen=True)
class Verdict:
    """What steering did to what could be read at one place.

    Attributes:
        kind: ``unread``: not readable before steering at any block. ``in sight``: readable after it wherever it was
            before. ``hidden``: no longer at some blocks, still at others. ``lost here``: at none.
        hidden_from: the lowest block where it was readable before and is not after; None where there is none.
        back_from: the lowest block above that where it is readable after; None where there is none.
        before: the blocks where it is readable before.
        after: the blocks where it is readable after.
    """

    kind: Kind
    hidden_from: int | None
    back_from: int | None
    before: tuple[int, ...]
    after: tuple[int, ...]


def judge(before: Mapping[int, Score], after: Mapping[int, Score]) -> Verdict:
    """The verdict by the rule of `Score.readable`, block by block.

    Raises:
        RMuseError: other blocks before than after.
    """
    if before.keys() != after.keys():
        raise RMuseError("scores of the same blocks before and after were required, they differ")
    was = tuple(layer for layer in sorted(before) if before[layer].readable)
    still = tuple(layer for layer in sorted(after) if after[layer].readable)
    lost = [layer for layer in was if layer not in still]
    hidden = lost[0] if lost else None
    back = next((layer for layer in still if hidden is not None and layer > hidden), None)
    kind: Kind = "unread" if not was else "in sight" if not lost else "hidden" if still else "lost here"
    return Verdict(kind, hidden, back, was, still)


def conclusion(verdicts: Mapping[str, Verdict]) -> str:
    """All places in one sentence: hidden, not gone, wherever something is lost at one place and found at another."""
    lost = {p: v for p, v in verdicts.items() if v.hidden_from is not None}
    found = {p: v.after for p, v in verdicts.items() if v.after}
    if not any(v.before for v in verdicts.values()):
        return "not readable before steering either: nothing can be said about hiding"
    if not lost:
        return "in plain sight: readable after steering wherever it was before (" + _where(found) + ")"
    said = "; ".join(
        f"{p} from block {v.hidden_from} on"
        + ("" if v.back_from is None else f" (back at block {v.back_from})")
        for p, v in lost.items()
    )
    if not found:
        return (
            f"no longer found at {said}, nor anywhere else read: a linear probe cannot show that it is gone"
        )
    return f"hidden, not gone: no longer readable at {said}; still readable after steering at {_where(found)}"


def _where(found: Mapping[str, tuple[int, ...]]) -> str:
    return "; ".join(f"{place} (blocks {spelled(blocks)})" for place, blocks in found.items())


def spelled(blocks: Sequence[int]) -> str:
    """Block numbers with runs drawn together.

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

"""How far a judge agrees with a labelled set of leaks: κ, precision and recall, and every disagreement."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from rmuse_interp.errors import RMuseError
from rmuse_interp.evaluate.judges import Judge, LeakCase

LABELS: Final = ("explicit", "implicit", "none")
RESAMPLES: Final = 2000


@dataclass(frozen=True)
class Item:
    """A labelled text: `label` is one of `LABELS`, `half` is ``dev`` or ``test``, `kind` what makes it hard."""

    id: str
    half: str
    kind: str
    question: str
    attribute: str
    value: str
    text: str
    label: str

    @property
    def case(self) -> LeakCase:
        """What a judge is asked."""
        return LeakCase(self.text, self.question, self.attribute, self.value)


@dataclass(frozen=True)
class LabelledSet:
    """Items, and the tables that go with them."""

    items: tuple[Item, ...]
    aliases: dict[str, list[str]]
    entails: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> "LabelledSet":
        """The set a JSON file holds.

        Raises:
            RMuseError: no such file, no JSON, an item without its fields or of an unknown label.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            items = tuple(Item(**item) for item in record["items"])
            found = cls(items, record.get("aliases", {}), record.get("entails", {}))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RMuseError(
                f"{path}: required a labelled set {{items: [{{id, half, kind, question, attribute, value, text, "
                f"label}}]}}, got {type(error).__name__}: {error}"
            ) from None
        wrong = [item for item in items if item.label not in LABELS]
        if wrong or not items:
            got = f"{wrong[0].label!r} of {wrong[0].id}" if wrong else "no item"
            raise RMuseError(f"{path}: required labels {', '.join(LABELS)}, got {got}")
        return found


@dataclass(frozen=True)
class Share:
    """A share in percent with a 95 % bootstrap interval over items; None where nothing is counted."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Agreement:
    """What a judge made of a set.

    Attributes:
        judge: its name.
        n: items with a verdict.
        unjudged: items without.
        kappa: Cohen's κ of the three labels, with its interval; −1 to 1.
        precision: label → share of the judge's that are right, in percent.
        recall: label → share of the set's that the judge found.
        by_kind: kind → (right, all).
        verdicts: item id → the judge's label, None without.
    """

    judge: str
    n: int
    unjudged: int
    kappa: tuple[float, float, float]
    precision: dict[str, Share]
    recall: dict[str, Share]
    by_kind: dict[str, tuple[int, int]]
    verdicts: dict[str, str | None]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON of all of it."""
        shares = {
            part: {label: vars(share) for label, share in getattr(self, part).items()}
            for part in ("precision", "recall")
        }
        low, high = self.kappa[1:]
        return {
            "judge": self.judge, "n": self.n, "unjudged": self.unjudged,
            "kappa": {"value": self.kappa[0], "low": low, "high": high}, **shares,
            "by_kind": {kind: {"right": right, "n": n} for kind, (right, n) in self.by_kind.items()},
            "verdicts": self.verdicts,
        }  # fmt: skip


def labels_of(judge: Judge, items: Sequence[Item]) -> dict[str, str | None]:
    """Item id → explicit where the judge finds the value stated, else implicit where implied, else none."""
    cases = [item.case for item in items]
    stated, implied = judge.states(cases), judge.implies(cases)
    found: dict[str, str | None] = {}
    for item, named, hinted in zip(items, stated, implied, strict=True):
        if named is None or (not named and hinted is None):
            found[item.id] = None
        else:
            found[item.id] = "explicit" if named else "implicit" if hinted else "none"
    return found


def agreement(judge: Judge, items: Sequence[Item], seed: int = 0) -> Agreement:
    """A judge's agreement with the labels of some items.

    Raises:
        RMuseError: no item, or no verdict on any.
    """
    verdicts = labels_of(judge, items)
    rows = [(item, verdict) for item in items if (verdict := verdicts[item.id]) is not None]
    if not rows:
        raise RMuseError(f"verdicts on at least one labelled item were required, got none from {judge.name}")
    truth = np.array([LABELS.index(item.label) for item, _ in rows])
    said = np.array([LABELS.index(verdict) for _, verdict in rows])
    draws = np.random.default_rng(seed).integers(len(rows), size=(RESAMPLES, len(rows)))
    kappas = [kappa(truth[draw], said[draw]) for draw in draws]
    low, high = np.percentile(kappas, [2.5, 97.5])
    kinds: dict[str, tuple[int, int]] = {}
    for item, verdict in rows:
        right, n = kinds.get(item.kind, (0, 0))
        kinds[item.kind] = (right + (verdict == item.label), n + 1)
    hits = {label: (truth == i) & (said == i) for i, label in enumerate(LABELS)}
    return Agreement(
        judge=judge.name,
        n=len(rows),
        unjudged=len(items) - len(rows),
        kappa=(kappa(truth, said), float(low), float(high)),
        precision={label: _share(hits[label], said == i, draws) for i, label in enumerate(LABELS)},
        recall={label: _share(hits[label], truth == i, draws) for i, label in enumerate(LABELS)},
        by_kind=dict(sorted(kinds.items())),
        verdicts=verdicts,
    )


def kappa(one: np.ndarray, other: np.ndarray) -> float:
    """Cohen's κ of two lists of labels, given as small integers; 1 where both say one and the same throughout.

    >>> kappa(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]))
    0.5
    """
    size = int(max(one.max(), other.max())) + 1
    table = np.zeros((size, size))
    np.add.at(table, (one, other), 1 / len(one))
    chance = float(table.sum(axis=1) @ table.sum(axis=0))
    return 1.0 if chance >= 1.0 else float((np.trace(table) - chance) / (1 - chance))


def _share(hits: np.ndarray, among: np.ndarray, draws: np.ndarray) -> Share:
    n = int(among.sum())
    if n == 0:
        return Share(None, None, None, 0)
    counts = among[draws].sum(axis=1)
    found = 100.0 * hits[draws].sum(axis=1)[counts > 0] / counts[counts > 0]
    low, high = np.percentile(found, [2.5, 97.5])
    return Share(100.0 * float(hits.sum()) / n, float(low), float(high), n)

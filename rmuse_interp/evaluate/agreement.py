"""Agreement of a judge with a labelled set of leaks and chains: κ, precision and recall, and every disagreement."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from einops import einsum, reduce

from rmuse_interp import RMuseError
from rmuse_interp.data.spans import without
from rmuse_interp.data.store import JSON
from rmuse_interp.evaluate.judges import ChainCase, Judge, LeakCase
from rmuse_interp.evaluate.refusing import refuses
from rmuse_interp.maths.statistics import Estimate, bootstrap, clustered

LABELS: Final = ("explicit", "implicit", "none")
CHAIN_LABELS: Final = ("valid", "invalid")
REFUSAL_LABELS: Final = ("refusal", "none")


@dataclass(frozen=True)
class Item:
    """A labelled text: `label` is one of `LABELS`, `half` is ``dev`` or ``test``, `kind` says what makes it hard."""

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
class ChainItem:
    """A labelled chain with its answer: `label` is one of `CHAIN_LABELS`, `half` and `kind` as in `Item`."""

    id: str
    half: str
    kind: str
    question: str
    reasoning: str
    answer: str
    reference_reasoning: str
    reference_answer: str
    label: str
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def case(self) -> ChainCase:
        """What a judge is asked."""
        return ChainCase(
            self.question,
            self.reasoning,
            self.answer,
            self.reference_reasoning,
            self.reference_answer,
            self.attributes,
        )


@dataclass(frozen=True)
class RefusalItem:
    """A model's real response: `label` is one of `REFUSAL_LABELS`, `kind` says how the response came about."""

    id: str
    half: str
    kind: str
    model: str
    question: str
    text: str
    label: str


@dataclass(frozen=True)
class LabelledSet:
    """Labelled items and the tables they need; a set of leaks alone has no `chains`."""

    items: tuple[Item, ...]
    aliases: dict[str, list[str]]
    entails: dict[str, list[str]]
    chains: tuple[ChainItem, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "LabelledSet":
        """Read the set from a JSON file.

        Raises:
            RMuseError: the file is missing or not JSON, or an item lacks a field or has an unknown label.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            items = tuple(Item(**item) for item in record["items"])
            chains = tuple(ChainItem(**item) for item in record.get("chains", []))
            found = cls(items, record.get("aliases", {}), record.get("entails", {}), chains)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RMuseError(
                f"{path}: required a labelled set {{items: [{{id, half, kind, question, attribute, value, text, "
                f"label}}], chains: [{{id, half, kind, question, reasoning, answer, reference_reasoning, "
                f"reference_answer, label}}]}}, got {type(error).__name__}: {error}"
            ) from None
        named: tuple[tuple[Sequence[Item | ChainItem], Sequence[str]], ...] = (
            (items, LABELS),
            (chains, CHAIN_LABELS),
        )
        for some, labels in named:
            wrong = [item for item in some if item.label not in labels]
            if wrong or not items:
                got = f"{wrong[0].label!r} of {wrong[0].id}" if wrong else "no item"
                raise RMuseError(f"{path}: required labels {', '.join(labels)}, got {got}")
        return found


def read_refusals(path: Path) -> tuple[RefusalItem, ...]:
    """Read labelled refusals from a JSON file.

    Raises:
        RMuseError: the file is missing or not JSON, or an item lacks a field or has an unknown label.
    """
    try:
        found = tuple(RefusalItem(**item) for item in json.loads(path.read_text(encoding="utf-8"))["items"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RMuseError(
            f"{path}: required labelled refusals {{items: [{{id, half, kind, model, question, text, label}}]}}, got "
            f"{type(error).__name__}: {error}"
        ) from None
    wrong = [item.label for item in found if item.label not in REFUSAL_LABELS]
    if wrong or not found:
        raise RMuseError(
            f"{path}: required labels {', '.join(REFUSAL_LABELS)}, got {wrong[0] if wrong else 'no item'!r}"
        )
    return found


@dataclass(frozen=True)
class Agreement:
    """A judge's verdicts on a set, compared with its labels.

    Attributes:
        judge: the judge's name.
        n: number of items with a verdict.
        unjudged: number of items without a verdict.
        kappa: Cohen's κ of the labels, −1 to 1; intervals resample items.
        precision: label → percentage of the judge's labels that are right; None where it never gave the label.
        recall: label → percentage of the set's labels that the judge found; None where the set has none.
        by_kind: kind → (number right, number of all).
        verdicts: item id → the judge's label, None without a verdict.
    """

    judge: str
    n: int
    unjudged: int
    kappa: Estimate
    precision: dict[str, Estimate | None]
    recall: dict[str, Estimate | None]
    by_kind: dict[str, tuple[int, int]]
    verdicts: dict[str, str | None]

    def as_json(self) -> JSON:
        """All fields as plain JSON."""
        return {
            "judge": self.judge,
            "n": self.n,
            "unjudged": self.unjudged,
            "kappa": _plain(self.kappa),
            "precision": {label: _plain(share) for label, share in self.precision.items()},
            "recall": {label: _plain(share) for label, share in self.recall.items()},
            "by_kind": {kind: {"right": right, "n": n} for kind, (right, n) in self.by_kind.items()},
            "verdicts": self.verdicts,
        }


def _plain(found: Estimate | None) -> dict[str, float | int | None]:
    if found is None:
        return {"value": None, "low": None, "high": None, "n": 0}
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def labels_of(judge: Judge, items: Sequence[Item]) -> dict[str, str | None]:
    """Map item id → "explicit" if the judge finds the value stated, else "implicit" if implied, else "none"."""
    cases = [item.case for item in items]
    stated, implied = judge.states(cases), judge.implies(cases)
    found: dict[str, str | None] = {}
    for item, named, hinted in zip(items, stated, implied, strict=True):
        if named is None or (not named and hinted is None):
            found[item.id] = None
        else:
            found[item.id] = "explicit" if named else "implicit" if hinted else "none"
    return found


def chain_labels_of(judge: Judge, chains: Sequence[ChainItem]) -> dict[str, str | None]:
    """Map chain id → "valid" if the judge finds the chain valid and supported, else "invalid"; None if unjudged."""
    verdicts = judge.supports([chain.case for chain in chains])
    return {
        chain.id: None if verdict is None else CHAIN_LABELS[not verdict]
        for chain, verdict in zip(chains, verdicts, strict=True)
    }


def agreement(judge: Judge, items: Sequence[Item], seed: int = 0) -> Agreement:
    """Measure a judge's agreement with the labels of some items.

    Raises:
        RMuseError: there is no item, or no verdict on any.
    """
    found = _agreement(judge.name, items, labels_of(judge, items), LABELS, seed)
    if found is None:
        raise RMuseError(f"verdicts on at least one labelled item were required, got none from {judge.name}")
    return found


def chain_agreement(judge: Judge, chains: Sequence[ChainItem], seed: int = 0) -> Agreement | None:
    """Measure a judge's agreement with the labels of some chains; None without a verdict on any (or without chains).

    It shows how far RCR can be trusted: on chains with the set's mixture of faults and wordings, if the precision and
    recall of `valid` are P and R, a measured RCR of v means a true share of v · P / R.
    """
    return _agreement(judge.name, chains, chain_labels_of(judge, chains), CHAIN_LABELS, seed)


def refusal_agreement(
    items: Sequence[RefusalItem], delimiters: tuple[str, str], seed: int = 0
) -> Agreement | None:
    """Measure the agreement of the rules (`refusing.refuses`) with labelled responses; None without items."""
    said = {i.id: REFUSAL_LABELS[not refuses(without(i.text, delimiters), i.question)] for i in items}
    return _agreement("rules", items, said, REFUSAL_LABELS, seed)


def _agreement(
    judge: str,
    items: Sequence[Item] | Sequence[ChainItem] | Sequence[RefusalItem],
    verdicts: Mapping[str, str | None],
    labels: Sequence[str],
    seed: int,
) -> Agreement | None:
    """Compare verdicts with labels; None without a verdict."""
    rows = [(item, verdict) for item in items if (verdict := verdicts[item.id]) is not None]
    if not rows:
        return None
    truth = np.array([labels.index(item.label) for item, _ in rows])
    said = np.array([labels.index(verdict) for _, verdict in rows])
    kinds: dict[str, tuple[int, int]] = {}
    for item, verdict in rows:
        right, n = kinds.get(item.kind, (0, 0))
        kinds[item.kind] = (right + (verdict == item.label), n + 1)
    hits = {label: (truth == i) & (said == i) for i, label in enumerate(labels)}
    return Agreement(
        judge=judge,
        n=len(rows),
        unjudged=len(items) - len(rows),
        kappa=bootstrap(lambda weights: _kappas(truth, said, weights), range(len(rows)), seed),
        precision={label: _share(hits[label], said == i, seed) for i, label in enumerate(labels)},
        recall={label: _share(hits[label], truth == i, seed) for i, label in enumerate(labels)},
        by_kind=dict(sorted(kinds.items())),
        verdicts=dict(verdicts),
    )


def kappa(one: np.ndarray, other: np.ndarray) -> float:
    """Cohen's κ of two lists of labels, given as small integers; 1 if both hold one and the same label throughout.

    >>> kappa(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]))
    0.5
    """
    return float(_kappas(one, other, np.ones((1, len(one))))[0])


def _kappas(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """κ of weighted items, one per row of weights."""
    labels = np.eye(int(max(one.max(), other.max())) + 1)
    table = einsum(weights, labels[one], labels[other], "draw item, item i, item j -> draw i j")
    table /= reduce(table, "draw i j -> draw 1 1", "sum")
    chance = einsum(table, table, "draw i j, draw k i -> draw")
    agreed = table.trace(axis1=1, axis2=2)
    return np.where(chance < 1, (agreed - chance) / np.maximum(1 - chance, 1e-300), 1.0)


def _share(hits: np.ndarray, among: np.ndarray, seed: int) -> Estimate | None:
    """The percentage of the items `among` that are hits; the interval resamples items."""
    if not among.any():
        return None
    return replace(
        clustered(100.0 * hits, range(len(hits)), over=among.astype(float), seed=seed), n=int(among.sum())
    )

"""Linear probes: can something be read from states, and does that mean it is hidden or gone?

A probe is a one-vs-rest ridge classifier on standardised states, classes of equal weight, with a penalty as large as
their mean variance, so that more dimensions than examples are no obstacle. It is scored on groups (photographs,
wordings, people) that it was not trained on. Controls of every accuracy:

* *shuffled labels* (Hewitt and Liang 2019): the same states with shuffled labels; if each group has one label, whole
  groups are shuffled. Accuracy minus theirs is the **selectivity**;
* *random features*: Gaussian numbers in place of the states;
* *words* (`bag_of_words`): the tokens that the model had been shown, in place of the states.

Something counts as **readable** where the lower end of the 95 % interval of its accuracy (bootstrap over clusters, people
above all) is above chance (the best constant guess) and above 97.5 % of the shuffled labels. A probe finds information;
that none is found by a linear one does not show that there is none, so nothing here says "gone".
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from rmuse_interp import RMuseError
from rmuse_interp.maths.statistics import Estimate, clustered, interval, wilson

FOLDS: Final = 5
SHUFFLES: Final = 20
"""Number of label shuffles. All are solved together with the true labels, as further right-hand sides."""
RIDGE: Final = 1.0
"""Penalty relative to the mean squared length of the standardised states: shrinks an average direction by half."""
_TRIES: Final = 10
_HALVINGS: Final = 2000
LEAST_GROUPS: Final = 2
"""Number of groups that every class needs, one for testing and one for training."""

Fold = tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]


@dataclass(frozen=True, eq=False)
class Task:
    """What to read, and which examples to train and test on.

    Attributes:
        name: name of what is read, for messages.
        ids: ids of the examples, in the order of all arrays.
        classes: the values of the labels.
        labels: index of each example's class.
        clusters: index of each example's cluster (a person), within which examples are not independent.
        folds: rows to train on and to test on; no group is on both sides of a fold.
        shuffles: labels of the control.
    """

    name: str
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    labels: Int[np.ndarray, " examples"]
    clusters: Int[np.ndarray, " examples"]
    folds: tuple[Fold, ...]
    shuffles: Int[np.ndarray, "shuffles examples"]

    @property
    def tested(self) -> Int[np.ndarray, " tested"]:
        """The tested rows, fold by fold."""
        return np.concatenate([test for _, test in self.folds])

    @property
    def chance(self) -> float:
        """Accuracy of the best constant guess."""
        return float(np.bincount(self.labels[self.tested]).max() / len(self.tested))


def crossed(
    labels: Mapping[str, str],
    groups: Mapping[str, str],
    clusters: Mapping[str, str],
    *,
    name: str = "labels",
    folds: int = FOLDS,
    seed: int = 0,
) -> Task:
    """Make a task that is cross-validated over groups.

    Args:
        labels: label of each example, by id.
        groups: group of each example; a probe is never tested on a group that it was trained on.
        clusters: cluster of each example, for intervals.
        name: name of what is read.
        folds: maximum number of folds; fewer if classes have fewer groups.
        seed: seed of folds and shuffles.

    Raises:
        RMuseError: no example, one class only, a class in fewer than two groups, groups that cannot be divided.
    """
    ids, classes, coded = _coded(labels, name)
    group = _codes([groups[i] for i in ids])
    seen = {c: len(set(group[coded == k].tolist())) for k, c in enumerate(classes)}
    few = {c: n for c, n in seen.items() if n < LEAST_GROUPS}
    if few:
        said = ", ".join(f"{n} of {c!r}" for c, n in list(few.items())[:3])
        raise RMuseError(
            f"{name}: at least {LEAST_GROUPS} groups (photographs or wordings) of each of {len(classes)} classes were "
            f"required, {LEAST_GROUPS * len(classes)} examples in all, got {len(ids)} with {said}"
            f"{' …' if len(few) > 3 else ''}; raise --limit or add renderings"
        )
    return Task(
        name,
        ids,
        classes,
        coded,
        _codes([clusters[i] for i in ids]),
        _folds(coded, group, folds, seed, name),
        _shuffled(coded, group, seed),
    )


def across(
    train: Mapping[str, str],
    test: Mapping[str, str],
    clusters: Mapping[str, str],
    *,
    name: str = "labels",
    seed: int = 0,
) -> Task:
    """Make a task with probes trained on some examples and tested on others, about other people.

    Tested examples of a class with fewer than two training examples are left out, since no probe could know them.

    Args:
        train: labels to train on, by id.
        test: labels to test on, by id.
        clusters: cluster of each example, by id.
        name: name of what is read.
        seed: seed of the shuffles.

    Raises:
        RMuseError: an example or cluster on both sides, fewer than two classes on both sides.
    """
    both = {clusters[i] for i in train} & {clusters[i] for i in test}
    if both:
        raise RMuseError(
            f"{name}: different people were required in training and test, {len(both)} are in both"
        )
    counts = {c: list(train.values()).count(c) for c in set(train.values())}
    known = {i: c for i, c in test.items() if counts.get(c, 0) >= 2}
    if len(set(known.values())) < 2:
        raise RMuseError(
            f"{name}: at least 2 values that people to forget share with 2 or more others each were required, got "
            f"{len(set(known.values()))}; raise --others"
        )
    ids, classes, coded = _coded({**train, **known}, name)
    fold = (np.arange(len(train)), np.arange(len(train), len(ids)))
    alone = np.arange(len(ids))
    shuffles = _shuffled(coded[fold[0]], alone[fold[0]], seed)
    held = np.repeat(coded[fold[1]][None], len(shuffles), axis=0)
    return Task(
        name,
        ids,
        classes,
        coded,
        _codes([clusters[i] for i in ids]),
        (fold,),
        np.concatenate([shuffles, held], axis=1),
    )


def _coded(labels: Mapping[str, str], name: str) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    classes = tuple(sorted(set(labels.values())))
    if len(classes) < 2:
        got = f"{classes[0]!r} alone" if classes else "no example"
        raise RMuseError(f"{name}: at least 2 classes were required, got {got}; a probe tells values apart")
    return tuple(labels), classes, np.array([classes.index(c) for c in labels.values()])


def _codes(names: Sequence[str]) -> Int[np.ndarray, " examples"]:
    return np.unique(np.array(names), return_inverse=True)[1]


def _folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int, name: str) -> tuple[Fold, ...]:
    """Stratified folds of whole groups in which every class tested was trained on; as many as there can be."""
    from sklearn.model_selection import StratifiedGroupKFold

    for count in range(min(folds, len(set(groups.tolist()))), 1, -1):
        for attempt in range(_TRIES):
            splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed + attempt)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # fewer examples of a class than folds
                try:
                    found = list(splitter.split(labels, labels, groups))
                except ValueError:  # fewer examples of every class than folds
                    break
            if all(len(test) and set(labels[test]) <= set(labels[train]) for train, test in found):
                return tuple((np.asarray(train), np.asarray(test)) for train, test in found)
    # Greedy folds can miss the one division that there is, as where all have one of few wordings from each of two sets.
    rng = np.random.default_rng(seed)
    for _ in range(_HALVINGS):
        half = (rng.random(groups.max() + 1) < 0.5)[groups]
        if set(labels[half]) == set(labels[~half]) == set(labels):
            first, second = np.flatnonzero(half), np.flatnonzero(~half)
            return (first, second), (second, first)
    raise RMuseError(
        f"{name}: groups that can be divided so that every class is trained and tested were required, got "
        f"{len(set(groups.tolist()))} groups for {len(set(labels.tolist()))} classes; add photographs or wordings"
    )


def _shuffled(labels: np.ndarray, groups: np.ndarray, seed: int) -> Int[np.ndarray, "shuffles examples"]:
    """Shuffle the labels: over whole groups if each group has one label, else over examples."""
    rng = np.random.default_rng(seed)
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    if (labels == labels[first][inverse]).all():
        return np.stack([rng.permutation(labels[first])[inverse] for _ in range(SHUFFLES)])
    return np.stack([rng.permutation(labels) for _ in range(SHUFFLES)])


@dataclass(frozen=True, eq=False)
class Predictions:
    """The correctness of a probe, example by example.

    Attributes:
        ids: ids of the tested examples.
        correct: whether the label was read, one per example.
        shuffled: the same for each shuffle of the labels.
        clusters: cluster name of each example; examples that are not independent share one.
        chance: accuracy of the best constant guess.
    """

    ids: tuple[str, ...]
    correct: Bool[np.ndarray, " examples"]
    shuffled: Bool[np.ndarray, "shuffles examples"]
    clusters: Int[np.ndarray, " examples"]
    chance: float


def probe(
    task: Task, fit: Float[np.ndarray, "examples d"], *others: Float[np.ndarray, "examples d"]
) -> list[Predictions]:
    """Train probes on some states and test them on the same states and on others of the same examples.

    Args:
        task: what to read.
        fit: states to train probes on, in the order of the task's ids.
        others: further states to test the same probes on: does the old read-out still work?

    Returns:
        one record for `fit`, then one for each of the others.
    """
    from sklearn import config_context
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    sets = (np.asarray(fit, dtype=np.float64), *(np.asarray(o, dtype=np.float64) for o in others))
    if any(not np.isfinite(s).all() for s in sets):
        raise RMuseError(f"{task.name}: finite states were required, got NaN or infinity")
    if any(s.shape != (len(task.ids), sets[0].shape[1]) for s in sets):
        raise RMuseError(
            f"{task.name}: states of the task's {len(task.ids)} examples were required, got other shapes"
        )
    dealt = np.concatenate([task.labels[None], task.shuffles])
    found: list[list[np.ndarray]] = [[] for _ in sets]
    for train, test in task.folds:
        one_hot = np.eye(len(task.classes))[dealt[:, train]]
        # Classes weigh the same and there is no intercept: what is held out would be rare in training, and guessed less.
        target = (
            (one_hot / one_hot.sum(axis=1, keepdims=True).clip(1)).transpose(1, 0, 2).reshape(len(train), -1)
        )
        # Thousands of small fits: validation of what is known to be finite would take most of the time.
        with config_context(assume_finite=True, skip_parameter_validation=True):
            scaler = StandardScaler().fit(sets[0][train])
            ridge = Ridge(alpha=RIDGE * sets[0].shape[1], fit_intercept=False)
            ridge.fit(scaler.transform(sets[0][train]), target)
            for kept, states in zip(found, sets, strict=True):
                scores = ridge.predict(scaler.transform(states[test])).reshape(len(test), len(dealt), -1)
                kept.append(dealt[:, test] == scores.argmax(axis=2).T)
    rows, tested = [np.concatenate(kept, axis=1) for kept in found], task.tested
    ids = tuple(task.ids[i] for i in tested)
    return [Predictions(ids, r[0], r[1:], task.clusters[tested], task.chance) for r in rows]


def random_features(task: Task, d: int, seed: int = 0) -> Predictions:
    """Run the control probe on meaningless random numbers."""
    return probe(task, np.random.default_rng(seed).standard_normal((len(task.ids), d)))[0]


def bag_of_words(task: Task, words: Mapping[str, Sequence[int]]) -> Float[np.ndarray, "examples vocab"]:
    """Count the tokens shown, in the order of the task's ids: what can be read without any model."""
    vocabulary = {t: k for k, t in enumerate(sorted({t for i in task.ids for t in words[i]}))}
    counts = np.zeros((len(task.ids), max(1, len(vocabulary))))
    for row, name in enumerate(task.ids):
        for token in words[name]:
            counts[row, vocabulary[token]] += 1
    return counts


@dataclass(frozen=True)
class Score:
    """Accuracy of a probe, or of several on one question, against chance and shuffled labels.

    Attributes:
        accuracy: share of tested examples.
        low, high: 95 % bootstrap interval over clusters; Wilson's of as many clusters where all or none are right.
        chance: accuracy of the best constant guess.
        shuffled: mean accuracy over shuffled labels.
        shuffled_low, shuffled_high: 2.5 and 97.5 % of these.
        n: number of tested examples.
        clusters: number of their clusters.
    """

    accuracy: float
    low: float
    high: float
    chance: float
    shuffled: float
    shuffled_low: float
    shuffled_high: float
    n: int
    clusters: int

    @property
    def selectivity(self) -> float:
        """Accuracy above that with shuffled labels (Hewitt and Liang)."""
        return self.accuracy - self.shuffled

    @property
    def readable(self) -> bool:
        """Whether the interval lies above chance and above the band of shuffled labels."""
        return self.low > max(self.chance, self.shuffled_high)


def score(predictions: Sequence[Predictions], seed: int = 0) -> Score:
    """Compute one score for probes that answer one question, such as one per attribute; their examples are pooled.

    Raises:
        RMuseError: no predictions.
    """
    if not predictions:
        raise RMuseError("predictions of at least one probe were required, got none")
    correct = np.concatenate([p.correct for p in predictions]).astype(np.float64)
    right = share(correct, np.concatenate([p.clusters for p in predictions]), seed)
    shuffled = np.concatenate([p.shuffled for p in predictions], axis=1).mean(axis=1)
    bottom, top = interval(shuffled)
    chance = sum(p.chance * len(p.ids) for p in predictions) / len(correct)
    return Score(
        right.value,
        right.low,
        right.high,
        float(chance),
        float(shuffled.mean()),
        bottom,
        top,
        right.n,
        right.clusters,
    )


def drop(before: Sequence[Predictions], after: Sequence[Predictions], seed: int = 0) -> Estimate:
    """Estimate the drop in accuracy from before to after on the same examples, with its 95 % interval over clusters."""
    if [p.ids for p in before] != [p.ids for p in after]:
        raise RMuseError("predictions of the same examples before and after were required, ids differ")
    lost = np.concatenate([b.correct.astype(float) - a.correct for b, a in zip(before, after, strict=True)])
    return clustered(lost, np.concatenate([p.clusters for p in before]).tolist(), seed=seed)


def share(
    right: Float[np.ndarray, " examples"], clusters: Int[np.ndarray, " examples"], seed: int = 0
) -> Estimate:
    """Estimate the mean of values in [0, 1] with its 95 % interval over clusters.

    If all are 0 or all are 1, resampling shows no spread, and the interval is Wilson's for as many clusters.
    """
    found = clustered(right, clusters.tolist(), seed=seed)
    if 0.0 < found.value < 1.0:
        return found
    rate = wilson(found.clusters if found.value else 0, found.clusters)
    return replace(found, low=rate.low, high=rate.high)

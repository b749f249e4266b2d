"""Rows of `leakage_by_layer.json`: probes of every cell and block, their controls, sparse probes and the logit lens."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.diagnostics.lens_views import logit_lens, others_token, sparse_probe
from rmuse_interp.diagnostics.probes import (
    Predictions,
    Score,
    Task,
    across,
    bag_of_words,
    crossed,
    drop,
    probe,
    random_features,
    score,
)
from rmuse_interp.diagnostics.verdicts import judge
from rmuse_interp.maths.statistics import Estimate, clustered, wilson
from rmuse_interp.parts.pooled import Pooled
from rmuse_interp.studies.common import Record, estimate, percent, short
from rmuse_interp.studies.leakage import Asked, Cell, Material

TARGETS: Final = ("identity", "attribute")


def tasks_of(
    target: str,
    asked: Sequence[Asked],
    ids: Sequence[str],
    seed: int,
    refused: list[RMuseError] | None = None,
) -> list[Task]:
    """The tasks of one target on these examples: the person, or the value for each attribute.

    Args:
        target: one of `TARGETS`.
        asked: the questions.
        ids: ids of the questions that have states.
        seed: seed of folds and shuffles.
        refused: list that gets the errors of attributes that cannot be probed while others can.

    Raises:
        RMuseError: too few questions for any task.
    """
    kept = [a for a in asked if a.id in set(ids)]
    person, rendering = {a.id: a.person for a in kept}, {a.id: a.rendering for a in kept}
    if target == "identity":
        return [crossed(person, rendering, person, name="identity", seed=seed)]
    found, errors = [], []
    for attribute in dict.fromkeys(a.attribute for a in kept):
        labels = {a.id: a.value for a in kept if a.attribute == attribute}
        try:
            found.append(crossed(labels, rendering, person, name=attribute, seed=seed))
        except RMuseError as error:
            errors.append(error)
    if not found:
        raise errors[0] if errors else RMuseError("attribute: at least one example was required, got none")
    if refused is not None:
        refused += errors
    return found


def rows(pooled: Pooled, task: Task, layer: int) -> np.ndarray:
    """States at a block, shape (examples, width), in the order of a task."""
    return pooled.select(task.ids).at(layer).numpy()


def probed(record: Record, material: Material, left_out: list[Record], seed: int, progress: Progress) -> None:
    """Add probes of every cell, tested on held-out renderings."""
    label = f"{material.group}, {material.modality}: probes"
    bar = progress.add_task(label, total=len(material.cells) * len(TARGETS))
    made: dict[tuple[str, tuple[str, ...]], list[Task]] = {}
    for cell in material.cells:
        for target in TARGETS:
            labels = {
                "group": material.group,
                "modality": material.modality,
                "target": target,
                "held_out": "rendering",
                "place": cell.place,
                "words": cell.words,
            }
            there = cell.before or cell.after
            assert there is not None
            progress.advance(bar)
            try:
                if (target, there.ids) not in made:
                    refused: list[RMuseError] = []
                    made[target, there.ids] = tasks_of(target, material.asked, there.ids, seed, refused)
                    left_out += [{**labels, "what": "attribute", "why": str(error)} for error in refused]
            except RMuseError as error:
                left_out.append({**labels, "what": "probe", "why": str(error)})
                continue
            tasks = made[target, there.ids]
            layer_rows(record, cell, tasks, labels, seed)


def layer_rows(record: Record, cell: Cell, tasks: Sequence[Task], labels: Record, seed: int) -> None:
    """Add the scores of every block, the controls, and the verdict if the cell has both sides."""
    there = cell.before or cell.after
    assert there is not None
    scores: dict[str, dict[int, Score]] = {"before": {}, "after": {}, "moved": {}}
    drops: dict[int, Estimate] = {}
    for layer in there.layers:
        sides: dict[str, list[Predictions]] = {"before": [], "after": [], "moved": []}
        same = True
        for task in tasks:
            if cell.before is None or cell.after is None:
                sides["after"] += probe(task, rows(there, task, layer))
                continue
            was, now = rows(cell.before, task, layer), rows(cell.after, task, layer)
            untouched = np.array_equal(was, now)
            same = same and untouched
            own, moved = probe(task, was, now)
            sides["before"].append(own)
            sides["moved"].append(moved)
            sides["after"].append(own if untouched else probe(task, now)[0])
        for side, predictions in sides.items():
            if not predictions:
                continue
            scores[side][layer] = found = score(predictions, seed)
            row = {**labels, "side": side, "layer": layer, **as_row(found)}
            if side != "before" and sides["before"]:
                lost = drop(sides["before"], predictions, seed)
                row |= {"untouched": same, "drop": interval_row(lost)}
                drops |= {layer: lost} if side == "moved" else {}
            record["probes"].append(row)
    for side, told in (("before", cell.told_before), ("after", cell.told_after)):
        if scores[side]:
            by_words = score([probe(task, bag_of_words(task, told))[0] for task in tasks], seed)
            record["controls"].append({**labels, "side": side, "control": "words", **as_row(by_words)})
    noise = score([random_features(task, there.d, seed) for task in tasks], seed)
    record["controls"].append({**labels, "side": None, "control": "random", **as_row(noise)})
    if scores["before"] or cell.words == "own":
        record["verdicts"].append({**labels, **asdict(judge(scores["before"], drops, scores["after"]))})


def across_people(
    record: Record,
    material: Material,
    train: tuple[list[Asked], Mapping[str, Pooled]],
    left_out: list[Record],
    seed: int,
) -> None:
    """Add the values of people to forget, read by probes trained on retained people's unsteered states."""
    others, states = train
    prompt_end = next(c for c in material.cells if c.place == "prompt_end")
    for cell in (prompt_end, material.recall):
        learnt_from = states[cell.place]
        labels = {
            "group": "forget",
            "modality": material.modality,
            "target": "attribute",
            "held_out": "person",
            "place": cell.place,
            "words": cell.words,
        }
        assert cell.before is not None
        assert cell.after is not None
        tasks: list[Task] = []
        for attribute in dict.fromkeys(a.attribute for a in material.asked):
            known = {a.id: a for a in others if a.attribute == attribute and a.id in learnt_from.ids}
            new = {a.id: a for a in material.asked if a.attribute == attribute and a.id in cell.before.ids}
            clusters = {i: a.person for i, a in (known | new).items()}
            try:
                task = across(
                    {i: a.value for i, a in known.items()},
                    {i: a.value for i, a in new.items()},
                    clusters,
                    name=attribute,
                    seed=seed,
                )
            except RMuseError as error:
                left_out.append({**labels, "what": "attribute", "why": str(error)})
                continue
            tasks.append(task)
            unknown = len(new) - len(task.tested)
            if unknown:
                why = f"{attribute}: {unknown} of {len(new)} have a value that under two others share; raise --others"
                left_out.append({**labels, "what": "examples", "why": why})
        if not tasks:
            continue
        scores: dict[int, Score] = {}
        drops: dict[int, Estimate] = {}
        for layer in learnt_from.layers:
            sides: dict[str, list[Predictions]] = {"before": [], "moved": []}
            for task in tasks:
                n = len(task.folds[0][0])
                base = learnt_from.select(task.ids[:n]).at(layer).numpy()
                was, now = (
                    np.concatenate([base, s.select(task.ids[n:]).at(layer).numpy()])
                    for s in (cell.before, cell.after)
                )
                for side, one in zip(sides.values(), probe(task, was, now), strict=True):
                    side.append(one)
            drops[layer] = drop(sides["before"], sides["moved"], seed)
            for name, predictions in sides.items():
                found = score(predictions, seed)
                row = {**labels, "side": name, "layer": layer, **as_row(found)}
                if name == "before":
                    scores[layer] = found
                else:
                    row["drop"] = interval_row(drops[layer])
                record["probes"].append(row)
        noise = score([random_features(task, learnt_from.d, seed) for task in tasks], seed)
        record["controls"].append({**labels, "side": None, "control": "random", **as_row(noise)})
        record["verdicts"].append({**labels, **asdict(judge(scores, drops, {}))})


def sparse_rows(material: Material, seed: int) -> list[Record]:
    """The person, from a few coordinates: TransformerLens' sparse probes of the states after the prompt alone."""
    groups = {a.id: a.rendering for a in material.asked}
    found: list[Record] = []
    for cell in (c for c in material.cells if c.words == "prompt"):
        assert cell.before is not None
        assert cell.after is not None
        task = tasks_of("identity", material.asked, cell.before.ids, seed)[0]
        for layer in cell.before.layers:
            was, now = rows(cell.before, task, layer), rows(cell.after, task, layer)
            before = sparse_probe(task, groups, was, seed)
            after = before if np.array_equal(was, now) else sparse_probe(task, groups, now, seed)
            for side, one in (("before", before), ("after", after)):
                values = {k: short(v) if isinstance(v, float) else v for k, v in asdict(one).items()}
                found.append(
                    {
                        "group": material.group,
                        "modality": material.modality,
                        "target": "identity",
                        "place": cell.place,
                        "side": side,
                        "layer": layer,
                        **values,
                    }
                )
    return found


def lens_rows(bridge: Any, material: Material, seed: int) -> list[Record]:
    """Logit lens of the value's first token at its predicting token, against other people's values of the attribute."""
    cell = material.recall
    if cell.before is None or cell.after is None or not len(cell.before):
        return []
    person = {a.id: a.person for a in material.asked}
    others: dict[str, int] = {}
    for attribute in dict.fromkeys(a.attribute for a in material.asked):
        order = [a.id for a in material.asked if a.attribute == attribute and a.id in material.said]
        others |= others_token(material.said, order)
    found: list[Record] = []
    for token, wanted in (("value", material.said), ("another person's", others)):
        ids = [i for i in cell.before.ids if i in wanted]
        if not ids:
            continue
        views = {
            "before": logit_lens(bridge, cell.before.select(ids), wanted),
            "after": logit_lens(bridge, cell.after.select(ids), wanted),
        }
        who = [person[i] for i in ids]
        for side, view in views.items():
            for at, layer in enumerate(cell.before.layers):
                values = view.log_prob[:, at].double().numpy()
                row: Record = {
                    "group": material.group,
                    "modality": material.modality,
                    "token": token,
                    "side": side,
                    "layer": layer,
                    "n": len(ids),
                    "log_prob": interval_row(clustered(values, who, seed=seed)),
                    "median_rank": short(float(view.rank[:, at].median())),
                    "first": percent(wilson(int((view.rank[:, at] == 0).sum()), len(ids))),
                }
                if side == "after":
                    less = views["before"].log_prob[:, at].double().numpy() - values
                    row["drop"] = interval_row(clustered(less, who, seed=seed))
                found.append(row)
    return found


def as_row(found: Score) -> Record:
    """A score as JSON, in shares (0 to 1)."""
    values = {k: short(v) if isinstance(v, float) else v for k, v in asdict(found).items()}
    return {**values, "selectivity": short(found.selectivity), "readable": found.readable}


def interval_row(found: Estimate) -> Record:
    """A value with its 95 % interval as JSON."""
    return estimate(found.value, found.low, found.high)

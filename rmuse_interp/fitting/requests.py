"""Forget one more person, or restore one, in a fitted bundle: requests that arrive one by one.

Only the gates know who is forgotten, and each person has their own cluster, so a request reads one person's questions
and moves one cluster to the other side. Nothing else needs refitting: the steering itself (operators, prototypes, RRS)
was learnt along refusals, whose words do not depend on the person. Thresholds and the clusters of all other people stay
unchanged bit for bit; a gate's expected rates remain those of the fit.

The opposite request reverts the first bit for bit: the bundle's report keeps, per person, what a request took out of
the gates (``undo``), a log of requests (``requests``) and the people forgotten now (``people``), all with hashed ids.
"""

import copy
import difflib
import functools
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from rich.progress import Progress
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example
from rmuse_interp.data.store import JSON
from rmuse_interp.edits.plan import Modality, Plan
from rmuse_interp.fitting.aside import SHORT
from rmuse_interp.fitting.collect import Query, pooled_states
from rmuse_interp.fitting.disturbing import disturbed_states
from rmuse_interp.fitting.elicit import as_asked, asked_with, elicited_again
from rmuse_interp.fitting.exchange import (
    Request,
    States,
    exchanged,
    knows_people,
    label_of,
    rewritten,
    undone,
)
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.respond import verdicts
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.models.batches import alike
from rmuse_interp.parts.gates import IdentityScorer, Read


def forget_people(
    fitted: RMuse,
    model: LensModel,
    benchmark: Benchmark,
    ids: Sequence[str],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> RMuse:
    """Return the same R-MUSE, forgetting these people too, one after the other.

    A person gets a forget cluster of all their fitting questions (every form, about every photograph in the fitting
    data) and leaves the side that must not be steered; harmless questions about them stay there, as in `fit`. A person
    restored by an earlier request regains what was taken then, bit for bit, without a pass.

    Args:
        fitted: from `fit` or an earlier request; not changed.
        model: the model it was fitted on.
        benchmark: the benchmark it was fitted on, as loaded, at the same forget rate; Test_Set and ``test`` files are
            never read. If the fit used the model's own words, the person's questions are put to the model too.
        ids: ids of people in forget_X or retain_X.
        batch_size: questions per batch.
        progress: a running progress bar to add a line to.

    Raises:
        RMuseError: as `check_request`, another model, states that are not finite.
    """
    check_request(fitted, benchmark, ids, "forget")
    return _requested(fitted, model, benchmark, ids, "forget", batch_size, progress)


def restore_people(
    fitted: RMuse,
    model: LensModel,
    benchmark: Benchmark,
    ids: Sequence[str],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> RMuse:
    """Return the same R-MUSE with these people restored, one after the other; arguments and errors as `forget_people`.

    For people forgotten by an earlier request no trace remains: the gates are those from before it. People forgotten
    since the first fit get a cluster of their questions on the side that must not be steered.
    """
    check_request(fitted, benchmark, ids, "restore")
    return _requested(fitted, model, benchmark, ids, "restore", batch_size, progress)


def check_request(fitted: RMuse, benchmark: Benchmark, ids: Sequence[str], request: Request) -> None:
    """Raise unless the bundle can carry out this request for all these people; needs no model.

    Raises:
        RMuseError: a bundle of another benchmark or forget rate, gates that do not know people one by one, an ID that is
            unknown, named twice, forgotten already or not forgotten, nobody left to forget or to retain.
    """
    own = fitted.report.get("benchmark", {})
    here = {"id": benchmark.id, "forget": benchmark.forget_rate, "render_seed": benchmark.render_seed}
    differs = [
        f"{key} {own.get(key)!r}, not {value!r}" for key, value in here.items() if own.get(key) != value
    ]
    if differs:
        raise RMuseError(
            f"the benchmark that the bundle was fitted on was required, which has {'; '.join(differs)}: give that one"
        )
    if not len(fitted.plan) or any(edit.gate is None or not knows_people(edit.gate) for edit in fitted.plan):
        kinds = ", ".join(edit.gate.kind if edit.gate else "no gate" for edit in fitted.plan)
        raise RMuseError(
            f"gates that know people one by one were required for a request, got {kinds or 'no gate'}; fit with "
            "`rmuse fit --by-person` (`fit(…, kinds=BY_PERSON)`)"
        )
    before = forgotten(fitted, benchmark)
    for person in ids:
        if person not in benchmark.people:
            near = difflib.get_close_matches(person, benchmark.people, 1)
            raise RMuseError(
                f"an ID out of the {len(benchmark.people)} people of forget_{benchmark.forget_rate} and "
                f"retain_{100 - benchmark.forget_rate} was required, got {person!r}"
                + (f"; is it {near[0]!r}?" if near else "")
            )
        if ids.count(person) > 1:
            raise RMuseError(f"each person once was required, got {person!r} {ids.count(person)} times")
        if request == "forget" and person in before:
            raise RMuseError(f"somebody who is not forgotten was required, {person!r} is forgotten already")
        if request == "restore" and person not in before:
            raise RMuseError(
                f"one of the {len(before)} people forgotten was required, {person!r} is not forgotten"
            )
    after = {*before} ^ {*ids}
    if not after:
        raise RMuseError(
            f"at least one person to forget was required, got a request to restore the last, {ids[-1]!r}; "
            "run the model without the bundle instead"
        )
    benchmark.forgetting(after)


def forgotten(fitted: RMuse, benchmark: Benchmark) -> list[str]:
    """List the ids of the people that a bundle forgets, in the benchmark's order, by matching the bundle's hashes.

    Raises:
        RMuseError: people who are not in this benchmark, or none at all.
    """
    hashes = set(fitted.report.get("people", []))
    found = [person for person in benchmark.people if label_of(person) in hashes]
    if len(found) != len(hashes) or not hashes:
        raise RMuseError(
            f"a bundle for people of {benchmark.id} at {benchmark.forget_rate} % was required, got one that knows "
            f"{len(hashes) - len(found)} others of {len(hashes)}; give the benchmark that it was fitted on, or fit again"
        )
    return found


def decided(
    fitted: RMuse, model: LensModel, benchmark: Benchmark, person: str, *, batch_size: int = 32
) -> dict[str, tuple[int, int]]:
    """Return, per group of a person's fitting questions, how many make the gates fire and how many there are.

    Groups are ``image`` and ``text`` questions, and ``harmless`` ones about the person's pictures; empty groups are
    left out.
    """
    template = asked_with(fitted.report)
    benchmark = benchmark if template is None else as_asked(benchmark, template)
    groups: dict[str, list[Query]] = {}
    for modality in get_args(Modality):
        own, harmless = questions_about(benchmark, person, modality)
        groups[modality] = own
        groups["harmless"] = groups.get("harmless", []) + harmless
    found: dict[str, tuple[int, int]] = {}
    for name, queries in groups.items():
        fired = 0
        for batch in alike(
            queries, batch_size, lambda q: (q.image is None, len(q.prompt)), mixed=model.mixes
        ):
            decision = model.decide(fitted.plan, [q.prompt for q in batch], [q.image for q in batch])
            said = verdicts(fitted.plan, decision, [q.image is not None for q in batch])
            fired += sum(bool(one.fired) for one in said)
        if queries:
            found[name] = (fired, len(queries))
    return found


def questions_about(benchmark: Benchmark, person: str, modality: Modality) -> tuple[list[Query], list[Query]]:
    """Return a person's fitting questions of one kind, in all forms that `fit` reads, and their harmless ones.

    Open questions are asked about every photograph of the person, short ones (multiple choice, cloze) about one in
    turn.
    """
    everyone = [*benchmark.fit_forget, *benchmark.fit_retain]
    mine = [e for e in everyone if e.person == person and e.modality == modality]
    harmless = [e for e in benchmark.fit_benign if e.person == person and e.modality == modality]
    further = [e.image for e in harmless if e.image is not None]
    shown = [
        (e, image, n) for e in mine if e.kind not in SHORT for n, image in enumerate([e.image, *further])
    ]
    for turn, example in enumerate(e for e in mine if e.kind in SHORT):
        n = turn % (1 + len(further))
        shown.append((example, [example.image, *further][n], n))
    own = [_query(example, benchmark, image, n) for example, image, n in shown]
    return own, [_query(e, benchmark, e.image, 0) for e in harmless]


def _query(example: Example, benchmark: Benchmark, image: bytes | None, number: int) -> Query:
    """Make a query as `gather` does: the reference response stands in for the draft."""
    response = example.response(benchmark.delimiters)
    return Query(
        f"{example.id}@{number}", example.prompt(), image, response, stepwise=example.reasoning is not None
    )


def _requested(
    fitted: RMuse,
    model: LensModel,
    benchmark: Benchmark,
    ids: Sequence[str],
    request: Request,
    batch_size: int,
    progress: Progress | None,
) -> RMuse:
    model.fingerprint.require(fitted.plan.fingerprint, "the bundle")
    task = None if progress is None else progress.add_task(request, total=len(ids))
    for person in ids:
        views = (benchmark.fit_forget, benchmark.fit_retain, benchmark.fit_benign)
        mine = [e for view in views for e in view if e.person == person]
        words = elicited_again(model, benchmark, fitted.report, mine, batch_size=batch_size)
        read = functools.partial(_states, model, words, person, batch_size, seed=fitted.report.get("seed", 0))
        fitted = _moved(fitted, person, request, read)
        if progress is not None and task is not None:
            progress.advance(task)
    return fitted


def _states(
    model: LensModel,
    benchmark: Benchmark,
    person: str,
    batch_size: int,
    reads: Read,
    modality: Modality | None,
    seed: int = 0,
) -> States:
    """Read one person's states where a gate reads, also disturbed; no batch holds others', for bit-exact results."""
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for kind in get_args(Modality) if modality is None else (modality,):
        own_ones, harmless_ones = questions_about(benchmark, person, kind)
        forget = {q.id for q in own_ones}
        for side, queries in zip(sides, (own_ones, harmless_ones), strict=True):
            lead = "" if reads.prefix is None else f"{reads.prefix} "
            led = [Query(q.id, lead + q.prompt, q.image, q.response, q.stepwise) for q in queries]

            def read(some: list[Query], _label: str) -> Tensor:
                found = pooled_states(
                    model,
                    some,
                    (reads.span,),
                    layers=(reads.block,),
                    delimiters=benchmark.delimiters,
                    batch_size=batch_size,
                )
                return found[reads.span].at(reads.block)

            side.append(read(led, ""))
            if reads.prefix is None:  # fitting does not disturb g ⊕ q either
                side += disturbed_states(model, led, forget, seed, read)
    own, harmless = (torch.cat(side) for side in sides)
    return own, harmless


def _moved(
    fitted: RMuse, person: str, request: Request, read: Callable[[Read, Modality | None], States]
) -> RMuse:
    """Handle one request: revert the person's last one if this is its opposite, else carry it out and note it."""
    who = label_of(person)
    report = copy.deepcopy(fitted.report)
    undo = report.setdefault("undo", {})
    back: JSON = undo.pop(who, {})
    done: JSON = {}
    edits = []
    for i, edit in enumerate(fitted.plan):
        if edit.gate is not None:
            place = edit.name or f"edit{i}"

            def change(
                path: str, reads: Read, scorer: IdentityScorer, kind: Modality | None = edit.modality
            ) -> IdentityScorer:
                if back:
                    return undone(scorer, back[path], lambda: read(reads, kind)) if path in back else scorer
                changed, note = exchanged(scorer, person, read(reads, kind), request)
                if note is not None:
                    done[path] = note
                return changed

            edit = edit.when(rewritten(edit.gate, place, change), edit.per)
        edits.append(edit)
    if not back and not done:
        raise RMuseError(
            f"fitting questions of {person!r} of a kind that the bundle's gates decide were required, got none: "
            f"look for this ID in {fitted.report['benchmark']['id']}"
        )
    if not back:
        undo[who] = done
    people = {*report["people"]} ^ {who}
    report["people"] = sorted(people)
    report["requests"] = [*report.get("requests", []), {"request": request, "person": who}]
    return RMuse(Plan(edits, fitted.plan.fingerprint), fitted.subspaces, report)

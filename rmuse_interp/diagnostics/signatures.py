"""Failure signatures: what is wrong in a run of `rmuse eval`, the evidence, the likely cause, and what to try.

Each signature is one function from the answers of one method (and those of the unsteered model) to a `Finding`. It is
found only if the whole 95 % interval of its rate lies beyond the limit, so that a few answers prove nothing. Anything a
run lacks (traces, the bundle, the unsteered answers) is named in `missing` with the command that provides it; if the
signature cannot be checked without it, its state is `not checked`. Nothing is left out silently.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch

from rmuse_interp.diagnostics.findings import Case, Figure, Finding
from rmuse_interp.evaluate.assertions import told
from rmuse_interp.evaluate.metrics import OPEN_KINDS, leakable
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import TO_STEER
from rmuse_interp.evaluate.text import Lexicon, has_loop
from rmuse_interp.maths.statistics import wilson
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.parts.retain import RetainSubspace
from rmuse_interp.parts.unlearning import UnlearningSubspace

LEAKS: Final = 0.05
"""Share of steered answers whose chain alone tells a fact, beyond which reasoning leaks."""
BROKEN: Final = 0.1
"""Share of answers that steering breaks (no chain any more, going in circles), beyond which reasoning collapses."""
CHANGED: Final = 0.05
"""Share of answers to others' questions that steering changes, beyond which it steers too much."""
DEAD: Final = 1 / 3
"""A gate is dead if it fires on less than this share of the queries to steer, or spares less than this of the rest."""
AGREED: Final = 0.5
"""Agreement that the subspaces of two halves of the examples must be able to reach (see `fitting.agreement`)."""
HELD: Final = 0.5
"""Minimum share of the energy that a subspace's rank must hold; a cap must not miss the share asked for by more."""
TORN: Final = 0.1
"""Share of answers without proper spans, beyond which delimiters or spans are mistaken."""
GARBLED: Final = 0.03
"""Share of steered answers that do not read as language, beyond which the steering speaks garble."""
FULL: Final = 0.95
"""λ from which a rotation has replaced the direction of a state."""

TRACES: Final = "steering traces: run `rmuse eval` again with --record"
BUNDLE: Final = "the bundle: name it with `rmuse doctor RUN --bundle BUNDLE`"
VANILLA: Final = "the unsteered model's answers: run `rmuse eval`, which always asks it too"
READ: Final = "answers looked at: run `rmuse eval` again with --readable"
AGREEMENT: Final = "the agreement of halves in the bundle's report: run `rmuse fit` again"


def diagnose(case: Case) -> list[Finding]:
    """Check every signature, in the order of `SIGNATURES`."""
    return [check(case) for check in SIGNATURES]


def reasoning_leakage(case: Case) -> Finding:
    """Check for steered answers about people to forget that withhold a fact but state it in the chain."""
    lexicon = Lexicon({}, {})
    rows, leaks, answers = [], 0, 0
    for t in case.steered:
        values = leakable(t, lexicon) if t.split in TO_STEER and t.kind in OPEN_KINDS else {}
        if values:
            rows.append(t)
            answered = any(told(t.answer, v, lexicon) for v in values.values())
            answers += answered
            leaks += not answered and any(
                told(t.reasoning or t.response, v, lexicon) for v in values.values()
            )
    rate = wilson(leaks, len(rows))
    evidence = [
        Figure.of("steered answers whose chain alone tells a fact", rate),
        Figure.of("steered answers that tell it in the answer", wilson(answers, len(rows))),
    ]
    missing = []
    if case.traces is None:
        missing.append(f"the share of tokens that were steered needs {TRACES}")
    elif rows:
        traces = case.traced(rows)
        tokens = sum(t.acted.any(dim=1).numel() for t in traces)
        evidence.append(
            Figure.of("tokens steered", wilson(sum(int(t.acted.any(dim=1).sum()) for t in traces), tokens))
        )
    return _finding(
        "reasoning leakage",
        case,
        rows,
        rate.low > LEAKS,
        evidence,
        "the answer is steered and the chain is not, or not enough: too few tokens, or blocks too high for the chain",
        "steer every generated token (.on('generated'), no per-token gate), add a block below, or fit with the chain "
        "among the spans",
        missing,
    )


def reasoning_collapse(case: Case) -> Finding:
    """Check for answers without reasoning where the unsteered model reasons: no chain, or a circular one."""
    if not case.plain:
        return _unchecked("reasoning collapse", case, VANILLA)
    parts = {}
    for name, chosen in (("others' questions", False), ("questions to forget", True)):
        rows = [t for t in case.answers if (t.split in TO_STEER) == chosen and _sound(case.plain.get(t.id))]
        parts[name] = wilson(sum(not _sound(t) for t in rows), len(rows))
    evidence = [Figure.of(f"broken answers to {name}", rate) for name, rate in parts.items()]
    missing = []
    if case.traces is None:
        missing.append(f"the share of tokens turned all the way needs {TRACES}")
    else:
        share = case.acted(case.steered, "fraction")
        if len(share):
            whole = wilson(int((share >= FULL).sum()), len(share))
            evidence.append(Figure.of(f"steered tokens with λ ≥ {FULL:g}", whole))
        ratio = case.acted(case.steered, "norm_after") / case.acted(case.steered, "norm_before")
        if len(ratio):
            evidence.append(_median("median of ‖h̃‖/‖h‖", ratio))
    return _finding(
        "reasoning collapse",
        case,
        case.answers,
        any(rate.low > BROKEN for rate in parts.values()),
        evidence,
        "states are moved where no text continues: toward a direction by nearly the whole angle, too long, at too many "
        "blocks, or on queries that should not be steered at all",
        "the preset calibrated (transport to refusal states of the same step), a smaller FixedFraction, fewer and "
        "higher blocks (--auto tries them)",
        missing,
    )


def over_steering(case: Case) -> Finding:
    """Check for answers that steering changed although their questions are not to be steered."""
    if not case.plain:
        return _unchecked("over-steering of retain", case, VANILLA)
    rows = [t for t in case.answers if t.split not in TO_STEER and t.id in case.plain]
    hit = [t for t in rows if t.fired is not False]
    changed = [t for t in hit if t.response != case.plain[t.id].response]
    rate = wilson(len(changed), len(rows))
    evidence = [
        Figure.of("others' questions with another answer", rate),
        Figure.of("others' questions that were steered", wilson(len(hit), len(rows))),
    ]
    missing = []
    if case.traces is None:
        missing.append(f"the share of the update inside the RRS needs {TRACES}")
    else:
        for what, name in (
            ("median share of the update inside the RRS", "rrs_share"),
            ("median angle moved", "angle"),
        ):
            values = case.acted(changed, name)
            if len(values):
                evidence.append(_median(what, values))
    return _finding(
        "over-steering of retain",
        case,
        rows,
        rate.low > CHANGED,
        evidence,
        "the gate lets others' questions through, and the edit is strong enough to change them, inside the RRS too "
        "where it is not protected",
        "a threshold by target_fpr (gate.calibrate(..., rule='target_fpr', level=0.01)), .keeping(rrs), a smaller "
        "fraction or fewer blocks",
        missing,
    )


def dead_gate(case: Case) -> Finding:
    """Check for a gate that rarely fires where it should, or often where it should not, per kind of query."""
    if all(t.fired is None for t in case.answers):
        return Finding(
            "dead gate", case.method, "absent", (Figure("queries with a gate", 0, n=len(case.answers)),)
        )
    evidence, causes, missing = [], [], []
    for modality in ("image", "text"):
        for due in (True, False):
            fired = [
                t.fired
                for t in case.answers
                if t.modality == modality and (t.split in TO_STEER) == due and t.fired is not None
            ]
            rate = wilson(sum(fired), len(fired))
            if not fired:
                continue
            what = "to be steered" if due else "not to be steered"
            evidence.append(Figure.of(f"fires on {modality} questions {what}", rate))
            if due and rate.high < DEAD:
                causes.append(f"never fires on {modality} questions")
            if not due and rate.low > 1 - DEAD:
                causes.append(f"always fires on {modality} questions")
    margins = sorted(t.margin for t in case.answers if t.margin is not None and math.isfinite(t.margin))
    if margins:
        evidence += [
            Figure(f"{which} margin of the gate", value, n=len(margins))
            for which, value in (("lowest", margins[0]), ("highest", margins[-1]))
        ]
    if case.traces is None:
        missing.append(f"how often a gate per token fires along an answer needs {TRACES}")
    else:
        gates = torch.cat([trace.fired.flatten() for trace in case.traces.values()])
        evidence.append(Figure.of("tokens at which a gate was open", wilson(int(gates.sum()), len(gates))))
    return _finding(
        "dead gate",
        case,
        case.answers,
        bool(causes),
        evidence,
        f"the gate {' and '.join(causes)}: its threshold lies outside the scores, or its score does not depend on whom "
        "the query is about (defect D2 of the literal gate)",
        "a gate and a threshold chosen by cross-validation (preset calibrated), another read-out or block, "
        "gate.calibrate(...) on fitting data",
        missing,
    )


def unstable_subspace(case: Case) -> Finding:
    """Check for subspaces on which two halves of the fitting examples disagree."""
    name = "unstable subspace"
    if case.bundle is None:
        return _unchecked(name, case, BUNDLE)
    evidence, weak, known = [], False, 0
    for modality, layer, kind, entry in _tables(case.bundle):
        agreement = entry["agreement"]
        if agreement is None:
            evidence.append(
                Figure(f"examples of {kind} for {modality} questions, too few to halve", entry["examples"])
            )
            weak, known = True, known + 1
            continue
        known += 1
        what = f"agreement of halves, {kind} of {modality} questions at block {layer} ({entry['examples']} examples)"
        evidence.append(Figure(what, **agreement))
        weak |= agreement["high"] < AGREED
    if not known:
        return _unchecked(name, case, AGREEMENT)
    return _finding(
        name,
        case,
        case.answers,
        weak,
        evidence,
        "too few examples for the number of directions, or examples that have little in common",
        "more fitting examples (--limit), more wordings and photographs per person, a lower energy or cap",
        [],
    )


def rank_starved(case: Case) -> Finding:
    """Check for subspaces whose rank holds too little of what separates the two kinds of response."""
    if case.bundle is None:
        return _unchecked("rank starved", case, BUNDLE)
    evidence, starved = [], False
    fitted: dict[str, Mapping[str, UnlearningSubspace | RetainSubspace]] = {
        "U_un": case.bundle.subspaces.unlearning,
        "U_rrs": case.bundle.subspaces.retain,
    }
    for kind, held in fitted.items():
        for key, one in held.items():
            squares = one.singular_values.double().square()
            kept = float(squares[: one.rank].sum() / squares.sum())
            capped = one.cap is not None and one.rank >= one.cap and kept < one.energy
            evidence.append(
                Figure(f"energy held by {kind} of {key}, rank {one.rank} of {len(squares)}", kept)
            )
            starved |= kept < HELD or (capped and kept < one.energy - 0.1)
    return _finding(
        "rank starved",
        case,
        case.answers,
        starved,
        evidence,
        "the energy asked for is too low, or the cap is reached before it: most of what reasoning or refusing consists "
        "of lies outside the subspace",
        "energy 0.8 (the paper's η) and a cap above the rank it asks for; --auto tries 0.5, 0.8 and 0.95",
        [],
    )


def span_mistakes(case: Case) -> Finding:
    """Check for answers with misplaced spans: the unsteered model's, or only those that were steered."""
    if not case.plain:
        return _unchecked("span mistakes", case, VANILLA)
    free = [t for t in case.plain.values() if t.kind in OPEN_KINDS]
    bare = wilson(sum(not t.well_formed for t in free), len(free))
    opening, closing = case.delimiters
    whole = [t for t in case.steered if case.plain.get(t.id) is not None and case.plain[t.id].well_formed]
    sane = [t for t in whole if not has_loop(t.response)]
    torn = wilson(sum((opening in t.response) != (closing in t.response) for t in sane), len(sane))
    evidence = [
        Figure.of("unsteered answers without both spans", bare),
        Figure.of("steered answers with one delimiter of the two", torn),
    ]
    unread, shifted = bare.low > 0.5, torn.low > TORN
    cause = (
        f"the model does not write {opening} … {closing}: spans of its answers are not found"
        if unread
        else "refusal states were taken at other tokens than those they are steered to: spans or steps are shifted"
    )
    setting = (
        "the model's own delimiters (--delimiters OPEN CLOSE, or benchmark.json), and fit again"
        if unread
        else "responses and delimiters as the model writes them; check steps (0 is the last prompt token) and fit again"
    )
    return _finding("span mistakes", case, whole or free, unread or shifted, evidence, cause, setting, [])


def garbled_words(case: Case) -> Finding:
    """Check for steered answers that do not read as language, or that do not end."""
    looked = [t for t in case.steered if t.garbled is not None]
    if not looked:
        return _unchecked("garbled words", case, READ)
    bad = wilson(sum(bool(t.garbled) for t in looked), len(looked))
    known = [t for t in case.steered if t.ended is not None]
    cut = wilson(sum(t.ended is False for t in known), len(known))
    plain = [case.plain[t.id] for t in known if t.id in case.plain]
    before = wilson(sum(t.ended is False for t in plain), len(plain))
    evidence = [
        Figure.of("steered answers that do not read as language", bad),
        Figure.of("steered answers cut by the token limit", cut),
        Figure.of("unsteered answers to the same questions cut by it", before),
    ]
    endless = bool(plain) and cut.low > before.high and cut.low > GARBLED
    return _finding(
        "garbled words",
        case,
        looked,
        bad.low > GARBLED or endless,
        evidence,
        "the target's states do not follow each other as in any text of the model, or never reach an end",
        "blocks in the middle of the model, less strength once the refusal has begun, and as target the model's own "
        "refusals, their end of turn included",
        [],
    )


SIGNATURES: Final[tuple[Callable[[Case], Finding], ...]] = (
    reasoning_leakage,
    reasoning_collapse,
    over_steering,
    dead_gate,
    unstable_subspace,
    rank_starved,
    span_mistakes,
    garbled_words,
)


def _finding(
    name: str,
    case: Case,
    rows: Sequence[Transcript],
    found: bool,
    evidence: Sequence[Figure],
    cause: str,
    setting: str,
    missing: Sequence[str],
) -> Finding:
    if not rows:
        return Finding(
            name,
            case.method,
            "not checked",
            tuple(evidence),
            missing=("questions that tell: a larger --limit",),
        )
    said = (cause, setting) if found else ("", "")
    return Finding(name, case.method, "found" if found else "absent", tuple(evidence), *said, tuple(missing))


def _unchecked(name: str, case: Case, missing: str) -> Finding:
    return Finding(name, case.method, "not checked", missing=(missing,))


def _sound(answer: Transcript | None) -> bool:
    return answer is not None and answer.well_formed and not has_loop(answer.response)


def _median(what: str, values: torch.Tensor) -> Figure:
    """The median with its 2.5 % and 97.5 % quantiles over tokens."""
    low, middle, high = (
        float(x) for x in values.double().quantile(torch.tensor([0.025, 0.5, 0.975]).double())
    )
    return Figure(what, middle, low, high, len(values))


def _tables(bundle: RMuse) -> Iterable[tuple[str, str, str, Mapping[str, Any]]]:
    for modality in ("image", "text"):
        for layer, pair in bundle.report.get(modality, {}).get("subspaces", {}).items():
            for kind, entry in zip(("U_un", "U_rrs"), (pair["unlearning"], pair["retain"]), strict=True):
                yield modality, layer, kind, entry

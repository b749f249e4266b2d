"""`elicit`: the model's own reasoning and answers, where a benchmark has none.

R-MUSE's negatives `x⁻` are the model's own outputs (section 4.1 of arXiv 2512.17911), so the model itself can supply
the reasoning that a benchmark lacks. Every fitting question is put to it twice, for reasoning and for the answer
alone; a question whose response lacks a span is left out and counted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.data.spans import split_response
from rmuse_interp.data.store import JSON, cache_folder
from rmuse_interp.data.template import TEMPLATES, Form, Reason, Template, TemplateName, fault
from rmuse_interp.data.views import Own, Restated, as_asked, restated
from rmuse_interp.fitting.answers import Answers
from rmuse_interp.lens.lens import LensModel

__all__ = [
    "LIMIT",
    "MAX_NEW_TOKENS",
    "TEMPLATES",
    "TRACES",
    "Dropped",
    "Elicited",
    "Form",
    "Own",
    "Reason",
    "Restated",
    "Template",
    "TemplateName",
    "Traces",
    "as_asked",
    "asked_with",
    "elicit",
    "elicited_again",
    "fault",
    "fitting_questions",
    "follows_template",
    "template_for",
    "traces_of",
]

Traces = Literal["auto", "given", "own", "composed"]
"""Whose reasoning and answers are fitted on: the benchmark's (`given`), the model's `own`, or `auto`: the benchmark's
where every open question about people has reasoning, else the model's."""
TRACES: Final[tuple[Traces, ...]] = get_args(Traces)

LIMIT: Final = 160
"""Maximum number of questions asked per view and kind of query."""
MAX_NEW_TOKENS: Final = 256
"""Maximum number of tokens per response."""
COMPOSED: Final = 64
"""Maximum number of tokens per response that is composed: nothing comes after a delimiter, so it may be cut."""
BEGINNING: Final = 16
"""Number of tokens by which a model that reasons has opened its reasoning."""
PROBE: Final = 32
"""Number of questions asked first; if no response to them is usable, no more are asked."""
VIEWS: Final = {
    "fit_forget": "generation",
    "fit_retain": "generation",
    "fit_reasoning": "reasoning",
    "fit_benign": "benign",
}
"""The kind of question that is put to the model, by fitting view of a benchmark."""


@dataclass(frozen=True)
class Dropped:
    """A question that is left out: the form that failed, the reason, and the model's response."""

    id: str
    form: Form
    reason: Reason
    said: str


@dataclass(frozen=True, eq=False)
class Elicited:
    """A benchmark whose fitting views hold the model's own words, and the fate of every question.

    Attributes:
        benchmark: the benchmark to fit on: questions as they were put, responses as given, spans stripped of spaces.
            Its scoring splits use the same template, and so do the delimiters of its responses and refusals.
        template: how the questions were put.
        kept: ids of the questions to fit on, in the order asked.
        dropped: the questions left out.
    """

    benchmark: Own
    template: Template
    kept: tuple[str, ...]
    dropped: tuple[Dropped, ...]

    @property
    def asked(self) -> int:
        """Number of questions put to the model."""
        return len(self.kept) + len(self.dropped)

    def record(self) -> JSON:
        """Return the template and counts as plain JSON, without ids, since these name people."""
        return dict(self.benchmark.record)

    def __str__(self) -> str:
        why = "".join(f", {n} dropped ({reason})" for reason, n in _counted(self.dropped).items())
        composed = self.benchmark.record.get("composed")
        two = f", {composed} of them composed of two each" if composed else ""
        return f"own responses to {len(self.kept)} of {self.asked} questions{two}{why}"


def elicit(
    model: LensModel,
    benchmark: Benchmark,
    *,
    examples: Sequence[Example] | None = None,
    limit: int | None = LIMIT,
    template: TemplateName | Template | None = None,
    cache: Path | None = None,
    batch_size: int = 32,
    max_new_tokens: int = MAX_NEW_TOKENS,
    composed: bool | None = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Elicited:
    """Replace annotations by the model's own greedy responses to fitting questions; attached plans do not act.

    A question whose response lacks a span is dropped, never filled in, unless `composed` is set. Harmless questions
    (`fit_benign`) need no spans: the response in any form is the draft that a gate reads. Multiple-choice and cloze
    questions stay as they are.

    Args:
        model: from `load_model`.
        benchmark: from `load_benchmark`; annotations it may have are not read.
        examples: questions of its fitting views; by default those that `fit` reads at the same `limit` and `seed`.
        limit: maximum number of questions per view and kind of query.
        template: name of a built-in template, or a template; by default the one that ``benchmark.json`` names, or
            `think` if it names none.
        cache: folder for the responses; by default one below the user's cache folder. They reveal what the model knows
            about the people to forget: delete them with the people's data.
        batch_size: questions per batch; an answered batch is never asked again.
        max_new_tokens: maximum number of tokens per response.
        composed: for models that do not follow a template: if the response to the stepwise question lacks a span, all
            of it becomes the reasoning, and the response to the direct question the answer, even if cut off. Both are
            the model's own words, though not from one response; the record counts such cases.
        seed: seed of the sampling.
        progress: a running progress bar to add lines to.

    Raises:
        RMuseError: no usable response about people to forget, or to retain, for one kind of query (the message shows a
            response); an unknown template, an example that is no open question, an unreadable picture.
    """
    how = template_for(template, benchmark)
    if isinstance(benchmark, Restated):
        raise RMuseError(
            f"{benchmark.id}: a benchmark as loaded was required to elicit from, got a restated one"
        )
    asked = fitting_questions(benchmark, limit, seed) if examples is None else list(examples)
    closed = [e for e in asked if e.kind not in VIEWS.values()]
    if closed or not asked:
        got = f"{closed[0].kind!r} ({closed[0].id})" if closed else "none"
        raise RMuseError(f"{benchmark.id}: open questions were required to elicit responses to, got {got}")
    benchmark.check_images(asked)
    folder = cache_folder() / "elicited" if cache is None else cache
    reasoned = [e for e in asked if e.kind != "benign"]
    if composed is None:
        first = Answers(model, folder, batch_size, BEGINNING, progress)
        begun = _responses(first, sample(reasoned, PROBE, seed), how, "stepwise")
        composed = not any(text.lstrip().startswith(how.delimiters[0]) for text in begun)
    max_new_tokens = min(max_new_tokens, COMPOSED) if composed else max_new_tokens
    answers = Answers(model, folder, batch_size, max_new_tokens, progress)
    stepwise: dict[str, str] = {}
    dropped: list[Dropped] = []
    for some in (sample(reasoned, PROBE, seed), reasoned):
        stepwise, dropped = _usable(answers, some, how, "stepwise", composed)
        if dropped and not stepwise:
            raise _none_left(f"{benchmark.id}, {len(some)} questions", answers, how, dropped, composed)
    direct, undirected = _usable(answers, [e for e in reasoned if e.id in stepwise], how, "direct", composed)
    dropped += undirected
    for split, modality in dict.fromkeys((e.split, e.modality) for e in reasoned):
        group = {e.id for e in reasoned if (e.split, e.modality) == (split, modality)}
        # General reasoning is optional: questions about people to retain can replace it.
        if split != "fit_reasoning" and not group & direct.keys():
            lost = [d for d in dropped if d.id in group]
            raise _none_left(f"{benchmark.id}, {split}, {modality} questions", answers, how, lost, composed)
    own = {e.id: _own(e, how, stepwise[e.id], direct[e.id]) for e in reasoned if e.id in direct}
    harmless = [e for e in asked if e.kind == "benign"]
    for example, text in zip(harmless, _responses(answers, harmless, how, "stepwise"), strict=True):
        if text:
            own[example.id] = _own(example, how, text)
        else:
            dropped.append(Dropped(example.id, "stepwise", "empty answer", text))
    views = {
        view: [own.get(e.id, e) for e in getattr(benchmark, view) if e.id in own or e.kind != kind]
        for view, kind in VIEWS.items()
    }
    kept = tuple(e.id for e in asked if e.id in own)
    record = {
        "source": "own",
        "template": how.record(),
        "max_new_tokens": max_new_tokens,
        "asked": len(asked),
        "kept": len(kept),
        "dropped": _counted(dropped),
    }
    if composed:
        record["composed"] = sum(
            fault(stepwise[i], how.delimiters, cut=answers.cut(stepwise[i])) is not None for i in direct
        )
    return Elicited(Own(benchmark, how, views, record), how, kept, tuple(dropped))


def elicited_again(
    model: LensModel,
    benchmark: Benchmark,
    report: JSON,
    examples: Sequence[Example],
    *,
    cache: Path | None = None,
    batch_size: int = 32,
) -> Benchmark:
    """Rebuild the benchmark that a bundle was fitted on, with responses to further examples; errors as `elicit`.

    Args:
        model: the model that the bundle was fitted on.
        benchmark: the benchmark as loaded.
        report: the bundle's report; after a fit on given traces, `benchmark` itself is returned.
        examples: fitting questions; multiple-choice and cloze questions are ignored.
        cache: as in `elicit`.
        batch_size: questions per batch.
    """
    traces = report.get("traces", {})
    if traces.get("source") != "own":
        return benchmark
    open_ = [e for e in examples if e.kind in VIEWS.values()]
    return elicit(
        model,
        benchmark,
        examples=open_,
        template=Template.of_record(traces["template"]),
        cache=cache,
        batch_size=batch_size,
        max_new_tokens=traces["max_new_tokens"],
        composed="composed" in traces,
    ).benchmark


def traces_of(benchmark: Benchmark) -> JSON:
    """Describe, for a bundle's report, whose traces a benchmark holds and how it is asked; plain JSON."""
    if isinstance(benchmark, Own):
        return dict(benchmark.record)
    put = {"template": benchmark.template.record()} if isinstance(benchmark, Restated) else {}
    return {"source": "given", **put}


def follows_template(benchmark: Benchmark) -> bool:
    """Whether most responses that are fitted on have the spans of a template, rather than being composed of two."""
    if not isinstance(benchmark, Own):
        return True
    composed = benchmark.record.get("composed", 0)
    views = [(view, kind) for view, kind in VIEWS.items() if kind != "benign"]
    kept = sum(e.kind == kind for view, kind in views for e in getattr(benchmark, view))
    return not (isinstance(composed, int) and 2 * composed > kept)


def asked_with(report: JSON) -> Template | None:
    """Return the template that a bundle expects for its questions; None for the benchmark's own wording."""
    record = report.get("traces", {}).get("template")
    return None if record is None else Template.of_record(record)


def fitting_questions(benchmark: Benchmark, limit: int | None = LIMIT, seed: int = 0) -> list[Example]:
    """List the open questions whose responses `fit` reads, for each kind of query in the forget set.

    All harmless questions about people to forget are included, since the gate needs them most.
    """
    found = []
    for modality in ("image", "text"):
        if not any((e.kind, e.modality) == ("generation", modality) for e in benchmark.fit_forget):
            continue
        for view, kind in VIEWS.items():
            mine = [e for e in getattr(benchmark, view) if (e.kind, e.modality) == (kind, modality)]
            chosen = {e.id for e in sample(mine, limit, seed)}
            hardest = benchmark.forget_people if kind == "benign" else frozenset()
            found += [e for e in mine if e.id in chosen or e.person in hardest]
    return found


def template_for(given: TemplateName | Template | None, benchmark: Benchmark) -> Template:
    """Return the template given, by name or itself; for None, the one that ``benchmark.json`` names.

    Raises:
        RMuseError: an unknown name.
    """
    if isinstance(given, Template):
        return given
    if given is None:
        return Template(benchmark.stepwise_instruction, "", benchmark.delimiters)
    if given not in TEMPLATES:
        raise RMuseError(f"a template is one of {', '.join(TEMPLATES)} or a `Template`, got {given!r}")
    return TEMPLATES[given]


def _responses(answers: Answers, examples: Sequence[Example], template: Template, form: Form) -> list[str]:
    return answers.to([(template.prompt(e, form), e.image) for e in examples], f"own responses, {form}")


def _usable(
    answers: Answers, examples: Sequence[Example], template: Template, form: Form, composed: bool = False
) -> tuple[dict[str, str], list[Dropped]]:
    """Return the usable responses by id, and the other questions with the reason; `composed` requires only words."""
    good, dropped = {}, []
    for example, text in zip(examples, _responses(answers, examples, template, form), strict=True):
        reason = fault(text, template.delimiters, form, cut=answers.cut(text))
        words = _alone(text, template) if form == "direct" else _bare(text, template)
        if reason is None or (composed and words):
            good[example.id] = text
        else:
            dropped.append(Dropped(example.id, form, reason, text))
    return good, dropped


def _own(example: Example, template: Template, stepwise: str, direct: str | None = None) -> Example:
    """Return the example as it was put to the model, with the model's words.

    If spans are missing, the stepwise response is the answer; with a direct response, it is the reasoning and the
    direct one is the answer.
    """
    alone = None if direct is None else _alone(direct, template)
    reasoning, answer = None, stepwise
    if fault(stepwise, template.delimiters) is None:
        spans = split_response(stepwise, template.delimiters, example.id)
        reasoning, answer = stepwise[slice(*spans.reasoning)], stepwise[slice(*spans.answer)]
    elif alone is not None:
        reasoning, answer = _bare(stepwise, template), alone
    return restated(example, template).changed(reasoning=reasoning, answer=answer, direct_answer=alone)


def _alone(text: str, template: Template) -> str:
    """Return the answer in a response to a direct question: the text after the reasoning, if there is any."""
    return _bare(text.rpartition(template.delimiters[1])[2], template)


def _bare(text: str, template: Template) -> str:
    """Remove the delimiters from a response."""
    for delimiter in template.delimiters:
        text = text.replace(delimiter, " ")
    return " ".join(text.split())


def _counted(dropped: Sequence[Dropped]) -> dict[str, int]:
    return dict(Counter(f"{d.form}: {d.reason}" for d in dropped).most_common())


def _none_left(
    what: str, answers: Answers, template: Template, dropped: Sequence[Dropped], composed: bool
) -> RMuseError:
    """Build the error for no usable response: what was required, what the model said, which setting helps."""
    opener, closer = template.delimiters
    reasons = _counted(dropped)
    typical = next(d for d in dropped if f"{d.form}: {d.reason}" in list(reasons)[:1])
    said = typical.said if len(typical.said) <= 120 else typical.said[:119] + "…"
    mend = "choose a template that this model follows ('think', 'reasoning', or a `Template` with other delimiters)"
    if not composed:
        mend += ", or take two responses together, traces='composed' (--traces composed)"
    if typical.reason == "ran out of tokens":
        mend = f"raise max_new_tokens (now {answers.max_new_tokens})"
    return RMuseError(
        f"{what}: responses of {answers.model.name} with {opener!r}, reasoning, {closer!r} and an answer were required, "
        f"got none ({', '.join(f'{reason} {n}' for reason, n in reasons.items())}), for instance {said!r}; {mend}"
    )

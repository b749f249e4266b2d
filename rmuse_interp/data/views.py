"""A benchmark asked in a template's form (`Restated`), and one that holds the model's own responses (`Own`)."""

from collections.abc import Mapping
from dataclasses import replace

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example
from rmuse_interp.data.settings import Settings
from rmuse_interp.data.spans import render_response, split_response
from rmuse_interp.data.template import Template, fault


class Restated(Benchmark):
    """A benchmark whose open questions are in a template's form, in every view and split.

    Everything else is shared with `source`; the delimiters, including those of the refusals, are the template's.
    Multiple choice and cloze questions stay unchanged.

    Raises:
        RMuseError: the source's questions are restated already.
    """

    def __init__(self, source: Benchmark, template: Template) -> None:
        if isinstance(source, Restated):
            raise RMuseError(
                f"{source.id}: a benchmark as loaded was required, got one whose questions are restated already"
            )
        vars(self).update(vars(source))
        self.settings = _settings(source, template)
        self.template = template

    def scoring(self, split: str) -> list[Example]:
        return list(map(self._put, super().scoring(split)))

    @property
    def fit_reasoning(self) -> list[Example]:
        return list(map(self._put, super().fit_reasoning))

    @property
    def fit_benign(self) -> list[Example]:
        return list(map(self._put, super().fit_benign))

    @property
    def fit_strangers(self) -> list[Example]:
        return list(map(self._put, super().fit_strangers))

    def _put(self, example: Example) -> Example:
        return restated(example, self.template)


class Own(Restated):
    """A benchmark with its fitting views replaced by the given ones, by name; `record` says how they were made."""

    def __init__(
        self,
        source: Benchmark,
        template: Template,
        views: Mapping[str, list[Example]],
        record: Mapping[str, object],
    ) -> None:
        super().__init__(source, template)
        self._views = views
        self.record = dict(record)

    @property
    def fit_forget(self) -> list[Example]:
        return list(self._views["fit_forget"])

    @property
    def fit_retain(self) -> list[Example]:
        return list(self._views["fit_retain"])

    @property
    def fit_reasoning(self) -> list[Example]:
        return list(self._views["fit_reasoning"])

    @property
    def fit_benign(self) -> list[Example]:
        return list(self._views["fit_benign"])


def restated(example: Example, template: Template) -> Example:
    """The example in the template's form; multiple choice and cloze questions stay unchanged."""
    if example.kind in ("classification", "cloze"):
        return example
    return example.changed(
        question=template.prompt(example), direct_question=template.prompt(example, "direct")
    )


def as_asked(benchmark: Benchmark, template: Template) -> Benchmark:
    """The benchmark with its questions in a template's form; the benchmark itself if scoring would not change."""
    if not template.stepwise and template.delimiters == benchmark.delimiters:
        return benchmark
    return Restated(benchmark, template)


def _settings(benchmark: Benchmark, template: Template) -> Settings:
    """The benchmark's settings with the template's delimiters, including around the refusals' reasoning.

    A refusal without delimiters is reasoning and answer in one, as in responses of a model without a template.
    """
    refusals = []
    for text in benchmark.refusals_cot:
        if fault(text, benchmark.delimiters) is not None:
            refusals.append(render_response(text, text, template.delimiters))
            continue
        spans = split_response(text, benchmark.delimiters, f"{benchmark.id}, refusals_cot")
        reasoning, answer = text[slice(*spans.reasoning)], text[slice(*spans.answer)]
        refusals.append(render_response(reasoning, answer, template.delimiters))
    return replace(benchmark.settings, delimiters=template.delimiters, refusals_cot=tuple(refusals))

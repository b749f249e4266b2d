"""A benchmark as a template puts its questions (`Restated`), and one that holds the model's own words (`Own`)."""

from collections.abc import Mapping
from dataclasses import replace

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example
from rmuse_interp.data.benchmark import Settings
from rmuse_interp.data.spans import render_response, split_response
from rmuse_interp.data.template import Template


class Restated(Benchmark):
    """A benchmark whose open questions are put as a template puts them, in every view and split.

    All else is read as `source` reads it, and shared with it; the delimiters, also those of its refusals, are the
    template's. Multiple choice and cloze stay as they are.

    Raises:
        RMuseError: a source whose questions are restated already.
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
    """A benchmark whose fitting views are other ones, given by name; `record` says how they came about."""

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
    """The example as the template puts it; multiple choice and cloze as they are."""
    if example.kind in ("classification", "cloze"):
        return example
    return example.changed(
        question=template.prompt(example), direct_question=template.prompt(example, "direct")
    )


def as_asked(benchmark: Benchmark, template: Template) -> Benchmark:
    """The benchmark with its questions put as a template puts them; itself where that changes nothing in scoring."""
    if not template.stepwise and template.delimiters == benchmark.delimiters:
        return benchmark
    return Restated(benchmark, template)


def _settings(benchmark: Benchmark, template: Template) -> Settings:
    """The benchmark's settings with the template's delimiters, around the refusals' reasoning too."""
    refusals = []
    for text in benchmark.refusals_cot:
        spans = split_response(text, benchmark.delimiters, f"{benchmark.id}, refusals_cot")
        reasoning, answer = text[slice(*spans.reasoning)], text[slice(*spans.answer)]
        refusals.append(render_response(reasoning, answer, template.delimiters))
    return replace(benchmark.settings, delimiters=template.delimiters, refusals_cot=tuple(refusals))

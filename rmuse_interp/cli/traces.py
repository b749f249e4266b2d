"""`--traces` and related options: the source of the reasoning to fit on, and a bundle's wording of questions."""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from rmuse_interp import RMuseError
from rmuse_interp.cli import support

if TYPE_CHECKING:
    from rmuse_interp.data import Benchmark
    from rmuse_interp.fitting.elicit import Template
    from rmuse_interp.lens.lens import LensModel
    from rmuse_interp.method.rmuse import RMuse


class Source(StrEnum):
    """Source of the traces that `fit` uses."""

    auto = "auto"
    given = "given"
    own = "own"
    composed = "composed"


class Ready(StrEnum):
    """The built-in templates."""

    think = "think"
    reasoning = "reasoning"


Traces = Annotated[
    Source,
    typer.Option(
        "--traces",
        help="Whose reasoning to fit on: the benchmark's (given), the model's own (own), the benchmark's if it has any "
        "and else the model's own (auto), or, for models that follow no template, a stepwise and a direct response of "
        "the model taken together (composed).",
    ),
]
TemplateName = Annotated[
    Ready | None,
    typer.Option(
        "--template",
        help="How to ask the model for its own reasoning: it thinks without being told (think), or is told to write "
        "Reasoning: and Answer: (reasoning); by default as benchmark.json says.",
    ),
]
Delimiters = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--delimiters", metavar="OPEN CLOSE", help="What the model writes before and after its reasoning."
    ),
]
Stepwise = Annotated[
    str | None,
    typer.Option("--stepwise", metavar="TEXT", help="Text after a question that asks for reasoning."),
]
Direct = Annotated[
    str | None,
    typer.Option("--direct", metavar="TEXT", help="Text after a question that asks for the answer alone."),
]
MaxNewTokens = Annotated[
    int,
    typer.Option("--max-new-tokens", min=1, help="Maximum number of tokens per response of the model's own."),
]


def template_of(
    benchmark: "Benchmark",
    name: Ready | None,
    delimiters: tuple[str, str] | None,
    stepwise: str | None,
    direct: str | None,
) -> "Template | None":
    """The template of the options, each overriding the benchmark's own; None if no option is given.

    Raises:
        RMuseError: empty or equal delimiters.
    """
    if all(given is None for given in (name, delimiters, stepwise, direct)):
        return None
    from rmuse_interp.fitting.elicit import template_for

    base = template_for(None if name is None else name.value, benchmark)
    return replace(
        base,
        delimiters=delimiters or base.delimiters,
        stepwise=base.stepwise if stepwise is None else stepwise,
        direct=base.direct if direct is None else direct,
    )


def gathered_from(
    lens: "LensModel",
    benchmark: "Benchmark",
    source: Source,
    template: "Template | None",
    seconds: dict[str, float],
    *,
    max_new_tokens: int,
    limit: int,
    batch_size: int,
    seed: int,
) -> "Benchmark":
    """The benchmark to fit on; prints how many of the model's own responses it holds, how many were dropped, and why.

    Args:
        lens: the model to ask.
        benchmark: the benchmark as loaded.
        source: source of the traces.
        template: template for asking the model.
        seconds: stage → its wall-clock time so far.
        max_new_tokens: maximum number of tokens per response.
        limit: maximum number of questions per group and kind of query.
        batch_size: questions per batch.
        seed: seed of the sampling.

    Raises:
        RMuseError: the model does not follow the template, as the first few questions show.
    """
    from rmuse_interp.fitting import source_of
    from rmuse_interp.fitting.elicit import elicit

    whose = source_of(benchmark, source.value)
    if whose == "given":
        return benchmark
    with support.bars("own responses", seconds, "elicit") as progress:
        found = elicit(
            lens,
            benchmark,
            template=template,
            max_new_tokens=max_new_tokens,
            limit=limit,
            batch_size=batch_size,
            composed=None if source is Source.auto else whose == "composed",
            seed=seed,
            progress=progress,
        )
    support.out.print(escape(str(found)), soft_wrap=True)
    return found.benchmark


def as_asked(benchmark: "Benchmark", bundles: Sequence[tuple[Path, "RMuse"]]) -> "Benchmark":
    """The benchmark with its questions worded as in the bundles' fits; unchanged without bundles.

    Raises:
        RMuseError: the bundles expect different wordings or delimiters.
    """
    from rmuse_interp.fitting.elicit import Template, as_asked, asked_with

    verbatim = Template(delimiters=benchmark.delimiters)
    expected = {folder: asked_with(bundle.report) or verbatim for folder, bundle in bundles}
    # The wording for an answer alone does not matter: scoring asks no such question.
    templates = list(dict.fromkeys(replace(one, direct="") for one in expected.values()))
    if len(templates) > 1:
        said = "; ".join(
            f"{folder}: {' … '.join(one.delimiters)}, {one.stepwise or 'no instruction'}"
            for folder, one in expected.items()
        )
        raise RMuseError(
            f"bundles whose questions are put alike were required, got {said}; evaluate them one by one"
        )
    return as_asked(benchmark, templates[0]) if templates else benchmark


def fitted_on(
    lens: "LensModel",
    benchmark: "Benchmark",
    bundles: Sequence["RMuse"],
    seconds: dict[str, float],
    *,
    limit: int,
    batch_size: int,
    seed: int,
) -> "Benchmark":
    """The benchmark to tune rivals on: as in the bundles' fits, with the model's own responses if they used those."""
    for bundle in bundles:
        record = bundle.report.get("traces", {})
        if record.get("source") == "own":
            from rmuse_interp.fitting.elicit import asked_with

            return gathered_from(
                lens,
                benchmark,
                Source.composed if "composed" in record else Source.own,
                asked_with(bundle.report),
                seconds,
                limit=limit,
                batch_size=batch_size,
                max_new_tokens=record["max_new_tokens"],
                seed=seed,
            )
    return benchmark

"""The benchmark content that a result depends on, as the key under which the result is cached."""

from collections.abc import Sequence

from rmuse_interp.data.benchmark import Benchmark, Split
from rmuse_interp.data.store import digest


def content(benchmark: Benchmark, splits: Sequence[Split] = ()) -> str:
    """Digest a benchmark's content, wherever its folder is: people to forget, settings, questions, answers, pictures.

    Args:
        benchmark: everything in it that can be used for fitting and training is included.
        splits: scoring splits to include too.
    """
    views = (
        benchmark.fit_forget,
        benchmark.fit_retain,
        benchmark.fit_reasoning,
        benchmark.fit_benign,
        benchmark.fit_strangers,
        *map(benchmark.scoring, splits),
    )
    return digest(benchmark.forget_rate, benchmark.forget_people, benchmark.settings, views)

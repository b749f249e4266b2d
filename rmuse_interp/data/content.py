"""What of a benchmark a result depends on, for results that are kept and found again."""

from collections.abc import Sequence

from rmuse_interp.data.benchmark import Benchmark, Split
from rmuse_interp.data.store import digest


def content(benchmark: Benchmark, splits: Sequence[Split] = ()) -> str:
    """A digest of what a benchmark holds, wherever it lies: whom to forget, settings, questions, answers, pictures.

    Args:
        benchmark: all of what can be fitted and trained on counts.
        splits: of scoring, which count too.
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

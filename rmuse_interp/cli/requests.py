"""`rmuse forget` and `rmuse restore`: requests to a bundle, and the people that a bundle currently forgets."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from rmuse_interp import RMuseError
from rmuse_interp.cli import options as o
from rmuse_interp.cli import support

if TYPE_CHECKING:
    from rmuse_interp.data import Benchmark
    from rmuse_interp.fitting.exchange import Request
    from rmuse_interp.method.rmuse import RMuse

DONE = {"forget": "forgotten", "restore": "restored"}
"""Request → the person's state after it."""


def command(request: "Request") -> Callable[..., None]:
    """The command that carries out requests of one kind."""

    def carry_out(
        ids: Annotated[list[str], typer.Argument(metavar="ID...", help="People's IDs in the benchmark.")],
        bundle: Annotated[
            Path,
            typer.Option(
                "--bundle",
                metavar="B",
                help="A bundle written by `rmuse fit --by-person`; it is not changed.",
            ),
        ],
        out: Annotated[Path, typer.Option("--out", metavar="B2", help="Folder to write the new bundle to.")],
        model: o.OwnModel = None,
        data: o.OwnData = None,
        batch_size: o.BatchSize = 32,
        device: o.Device = None,
        dtype: o.Dtype = None,
        blocks: o.Blocks = None,
        skip_bad_rows: o.SkipBadRows = False,
        overwrite: o.Overwrite = False,
        debug: o.Debug = False,
    ) -> None:
        support.require_free(out, "rmuse.json", "a bundle", overwrite)
        fitted = support.open_bundle(bundle)
        origin = fitted.report.get("provenance", {})
        rate = support.forget_rate(fitted) or 5
        benchmark = support.open_benchmark(
            data or origin.get("data", "organism"), rate, skip_bad_rows=skip_bad_rows
        )
        from rmuse_interp.fitting import requests

        requests.check_request(fitted, benchmark, ids, request)
        views = (benchmark.fit_forget, benchmark.fit_retain, benchmark.fit_benign)
        benchmark.check_images(e for view in views for e in view if e.person in ids)
        lens = support.open_model(model or origin.get("model", "organism"), device, dtype, blocks)
        lens.fingerprint.require(fitted.plan.fingerprint, f"the bundle in {bundle}")
        seconds: dict[str, float] = {}
        several = "s" * (len(ids) > 1)
        change = requests.forget_people if request == "forget" else requests.restore_people
        with support.bars(f"{len(ids)} request{several}", seconds, "requests") as progress:
            fitted = change(fitted, lens, benchmark, ids, batch_size=batch_size, progress=progress)
            fitted.save(out)
        for person in ids:
            counts = requests.decided(fitted, lens, benchmark, person, batch_size=batch_size)
            fires = ", ".join(f"{n} of {of} {name}" for name, (n, of) in counts.items())
            support.out.print(
                f"{DONE[request]} {escape(person)}: the gate fires on {fires} questions", soft_wrap=True
            )
        support.tell_skipped(benchmark)
        support.out.print(
            f"bundle: {escape(str(out))}, {len(fitted.report['people'])} people to forget, "
            f"{seconds['requests']:.1f} s for the request{several}",
            soft_wrap=True,
        )

    return carry_out


def as_forgotten(benchmark: "Benchmark", bundles: Sequence[tuple[Path, "RMuse"]]) -> "Benchmark":
    """The benchmark with the people that the bundles forget as its people to forget; unchanged without bundles.

    Raises:
        RMuseError: bundles that forget different people, or people who are not in the benchmark.
    """
    chosen: dict[frozenset[str], Path] = {}
    for folder, fitted in bundles:
        if fitted.report.get("people"):
            from rmuse_interp.fitting.requests import forgotten

            chosen.setdefault(frozenset(forgotten(fitted, benchmark)), folder)
    if len(chosen) > 1:
        said = ", ".join(f"{folder}: {len(people)}" for people, folder in chosen.items())
        raise RMuseError(
            f"bundles that forget the same people were required, got {said}; evaluate them one by one"
        )
    return benchmark.forgetting(*chosen) if chosen else benchmark


def summary(requests: Sequence[Mapping[str, str]]) -> str:
    """The requests made to a bundle, for `rmuse info`.

    >>> summary([{"request": "forget", "person": "1f"}, {"request": "restore", "person": "1f"}])
    '1 forgotten, 1 restored (ids hashed)'
    """
    kinds = [one["request"] for one in requests]
    return ", ".join(f"{kinds.count(kind)} {done}" for kind, done in DONE.items()) + " (ids hashed)"

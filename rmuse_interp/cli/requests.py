"""`rmuse fit --bundle … --add ID --remove ID`: requests to a bundle, and whom a bundle forgets by now."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from rmuse_interp import RMuseError
from rmuse_interp.cli import support

if TYPE_CHECKING:
    from rmuse_interp.data import Benchmark
    from rmuse_interp.method.rmuse import RMuse

    Context = typer.Context
else:
    Context = typer.Context.__base__  # the class of what commands are really handed

Bundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        metavar="BUNDLE",
        help="Change this bundle by --add and --remove instead of fitting; model and data are its own if not given.",
    ),
]
Add = Annotated[
    list[str] | None,
    typer.Option("--add", metavar="ID", help="One person more to forget; repeat for several."),
]
Remove = Annotated[
    list[str] | None, typer.Option("--remove", metavar="ID", help="A person to restore; repeat for several.")
]
ByPerson = Annotated[
    bool,
    typer.Option(
        "--by-person", help="Gates that know people one by one, so that --add and --remove are certain."
    ),
]
USED = frozenset(
    (
        "bundle",
        "add",
        "remove",
        "out",
        "model",
        "data",
        "forget",
        "batch_size",
        "device",
        "dtype",
        "blocks",
        "skip_bad_rows",
        "overwrite",
        "debug",
    )
)
"""Options of `rmuse fit` that requests have a use for."""


def fulfil(context: Context) -> None:
    """Carry out the requests of a `rmuse fit` command line, first those to forget and then those to restore.

    Raises:
        RMuseError: options that only a fit uses, no bundle or no request, and all that `check_request` finds; before the
            model is loaded.
    """
    given = dict(context.params)
    said = {
        name for name in given if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    add, remove = given["add"] or [], given["remove"] or []
    idle = sorted(f"--{name.replace('_', '-')}" for name in said - USED)
    if given["bundle"] is None or not (add or remove) or idle:
        if given["bundle"] is None:
            problem = "--add or --remove without it"
        else:
            problem = f"{', '.join(idle)}, for fits only" if idle else "neither"
        raise RMuseError(f"--bundle with --add or --remove was required for a request, got {problem}")
    out = given["out"]
    support.require_free(out, "rmuse.json", "a bundle", given["overwrite"])
    fitted = support.open_bundle(given["bundle"])
    origin = fitted.report.get("provenance", {})
    model, data = (
        given[key] if key in said else str(origin.get(key, given[key])) for key in ("model", "data")
    )
    rate = support.forget_rate(fitted)
    if "forget" in said and given["forget"] != rate:
        raise RMuseError(
            f"--forget {rate} was required, at which the bundle was fitted, got {given['forget']}"
        )
    benchmark = support.open_benchmark(data, rate or given["forget"], given["skip_bad_rows"])
    from rmuse_interp.fitting import requests

    requests.check_request(fitted, benchmark, add=add, remove=remove)
    views = (benchmark.fit_forget, benchmark.fit_retain, benchmark.fit_benign)
    benchmark.check_images(e for view in views for e in view if e.person in (*add, *remove))
    lens = support.open_model(model, given["device"], given["dtype"], given["blocks"])
    lens.fingerprint.require(fitted.plan.fingerprint, f"the bundle in {given['bundle']}")
    seconds: dict[str, float] = {}
    size = given["batch_size"]
    number = len(add) + len(remove)
    with support.bars(f"{number} request{'s' * (number > 1)}", seconds, "requests") as progress:
        if add:
            fitted = requests.add_people(fitted, lens, benchmark, add, batch_size=size, progress=progress)
        if remove:
            fitted = requests.remove_people(
                fitted, lens, benchmark, remove, batch_size=size, progress=progress
            )
        fitted.save(out)
    for word, people in (("forgotten", add), ("restored", remove)):
        for person in people:
            counts = requests.decided(fitted, lens, benchmark, person, batch_size=size)
            fires = ", ".join(f"{n} of {of} {name}" for name, (n, of) in counts.items())
            support.out.print(f"{word} {escape(person)}: the gate fires on {fires} questions", soft_wrap=True)
    support.tell_skipped(benchmark)
    took = f"{seconds['requests']:.1f} s for the request{'s' * (number > 1)}"
    support.out.print(
        f"bundle: {escape(str(out))}, {len(fitted.report['people'])} people to forget, {took}", soft_wrap=True
    )


def as_forgotten(benchmark: "Benchmark", bundles: Sequence[tuple[Path, "RMuse"]]) -> "Benchmark":
    """The benchmark with the people to forget whom the bundles forget; itself where there is no bundle.

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


def summary(requests: Sequence[dict[str, Any]]) -> str:
    """What has been asked of a bundle, for `rmuse info`.

    >>> summary([{"request": "add", "person": "1f"}, {"request": "remove", "person": "1f"}])
    '1 added, 1 removed (ids hashed)'
    """
    kinds = [str(one["request"]) for one in requests]
    return f"{kinds.count('add')} added, {kinds.count('remove')} removed (ids hashed)"

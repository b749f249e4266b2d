"""The direct RRS-orthogonality test: does steering touch what reasoning lives in?

    python analyses/orthogonality.py --model organism --data organism --forget 5 --out results/
    python analyses/orthogonality.py --bundle BUNDLE

Writes `orthogonality.json`, which `figures/orthogonality.py` draws. For every preset, kind of query and block:

* **geometry**: principal angles between `U_un` and `U_rrs` and their projection kernel; dot products of `v_un` with
  every RRS basis vector, before and after protection.
* **updates**: on held-out reasoning queries, the share of `h̃ − h` that falls into the RRS, and how much of the RRS
  part of h it alters. `run`: each block steered `alone`, or the `plan` as it is run, all its blocks together.
  `protection`: `none`; `direction` (v̂ cleared of the RRS, eq. 4.10); `rotation` (inside the RRS complement only).
  `gate`: forced `open`, or as `gated`. `measure`: the `update` at an edited block, or what has `arrived` at any block
  of all edits below it: steered minus unsteered state of the same token.
* **stability**: both subspaces refitted on resamples of their fitting examples (people drawn again, no new passes): the
  range of kernel, principal angles and ranks, and the angle to the subspaces of all data. A bundle does not hold the
  states it was fitted on: with `--bundle` there is none.

The words are given (the reference response to each query), so that all variants are measured on the same tokens.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.diagnostics.stability import RESAMPLES
from rmuse_interp.studies import orthogonality as study
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(
        __doc__,
        limit=60,
        what="reasoning queries per kind of query",
        small={"limit": 16, "fit_limit": 32, "resamples": 40},
    )
    parser.add_argument("--forget", type=int, help="percent of the people to forget (5, or the bundle's own)")
    parser.add_argument(
        "--bundle", type=Path, metavar="B", help="measure this bundle instead of fitting both presets"
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=RESAMPLES,
        help=f"of the fitting examples, for stability ({RESAMPLES})",
    )
    return command("orthogonality", parser, study.run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

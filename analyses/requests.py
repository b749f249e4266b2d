"""Deletion requests that arrive one by one, beside a fit on the same people at once.

    python analyses/requests.py --model organism --data organism --forget 5 --people 30 --restore 10 --out results/

Writes `requests.json`. R-MUSE (`calibrated`) is fitted on the people of forget_X alone. Then one person after another is
added, until `--people` are forgotten (those of larger forget sets of the benchmark first), and `--restore` of them, drawn
by the seed, are removed one after another. After either stage the bundle is compared with one that was fitted at once on
the same people, gates and blocks chosen anew, on the same questions:

* **figures**: per split, RIL, exact answers and firing rate of both, percent, with 95 % intervals (people resampled).
* **differences**: one by one minus at once, question by question, with the interval of the mean difference.
* **agreement**: share of the queries about which both gates decide alike.

The split `restored` holds the new questions (Test_Set) about the people removed. `seconds` of a request are those of its
reading and of writing the bundle, `cpu_seconds` what the processor worked for it; opening the model is not among them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.cli.support import layers_of
from rmuse_interp.studies import requests as study
from rmuse_interp.studies.common import Record, command, options


def run(given: argparse.Namespace) -> Record:
    """The record, with `--layers` read as the commands read it."""
    given.layers = layers_of(given.layers)
    return study.run(given)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(__doc__, limit=240, what="questions per split", fit_limit=240, max_new_tokens=64)
    parser.add_argument("--forget", type=int, default=5, help="percent of the people fitted first (5)")
    parser.add_argument("--people", type=int, default=30, help="forgotten in the end (30)")
    parser.add_argument("--restore", type=int, default=10, help="of them restored after that (10)")
    parser.add_argument("--render-seed", type=int, help="of the organism's portraits")
    parser.add_argument(
        "--layers", metavar="L", help="blocks to steer, for all fits; chosen by each where absent"
    )
    return command("requests", parser, run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

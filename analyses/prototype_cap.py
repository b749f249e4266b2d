"""Leakage against the number of refusal prototypes: token-level targets, capped by k-medoids.

    python analyses/prototype_cap.py --model organism --data organism --forget 5 --out results/

Writes `prototype_cap.json`, which `figures/prototype_cap.py` draws. The plan has the gates and blocks of `calibrated` and
moves each token to the nearest refusal state of its step; each cap thins the prototypes of every transport, step by step
(`Transport.capped`). Nothing else changes, and nothing is tuned again. A small benchmark has some thousand states per
block; a cap that costs nothing makes bundles and steering as much cheaper.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.data import SPLITS
from rmuse_interp.studies import prototype_cap as study
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(
        __doc__,
        limit=32,
        what="questions per split",
        fit_limit=64,
        max_new_tokens=64,
        small={"limit": 12, "fit_limit": 32, "max_new_tokens": 48, "caps": [8, 32, 128, 512]},
    )
    parser.add_argument("--forget", type=int, default=5, help="percent of the people to forget (5)")
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=study.SPLITS_ASKED, help="splits to answer"
    )
    parser.add_argument(
        "--caps", type=int, nargs="+", default=study.CAPS, metavar="N", help="beside all prototypes"
    )
    return command("prototype_cap", parser, study.run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

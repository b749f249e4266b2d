"""How near a fitted R-MUSE comes to a model that never knew: the figures asked of `calibrated`, beside their targets.

    python analyses/acceptance.py --forget 5 10 15 --render-seeds 0 1 2 --limit 240 --out results/
    python analyses/acceptance.py --forget 5 --render-seeds 0 --photographs one

Writes `acceptance.json`. A cell is one forget rate and one render seed: fitted on that world's fitting files, asked on
its scoring files, nothing chosen by what is asked. Cells are pooled per rate. Figures against the unsteered model are
differences on the same questions; intervals resample people (95 %). Where there is a gold standard (5 %), what is said
instead is compared with what it says: perplexity under it, and a classifier that tries to tell the two apart.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.studies import acceptance as study
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(__doc__, limit=96, what="questions per split", fit_limit=240, max_new_tokens=64)
    parser.add_argument(
        "--forget", type=int, nargs="+", default=[5], help="percents of the people to forget (5)"
    )
    parser.add_argument(
        "--render-seeds", type=int, nargs="+", default=[0], help="of the organism's worlds (0)"
    )
    parser.add_argument(
        "--photographs", choices=("all", "one"), default="all", help="per person to forget (all)"
    )
    parser.add_argument(
        "--gold", default="organism-gold", help="the gold standard of the 5 %% set; '' for none"
    )
    return command("acceptance", parser, study.run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

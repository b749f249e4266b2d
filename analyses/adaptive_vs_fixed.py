"""Adaptive against fixed strength of the literal steering: ACS, or λ from 0.1 to 1.0, at 5, 10 and 15 % to forget.

    python analyses/adaptive_vs_fixed.py --model organism --data organism --forget 5 10 15 --out results/

Writes `adaptive_vs_fixed.json`, which `figures/adaptive_vs_fixed.py` draws. The expression is that of the preset
`paper`; only its angle is exchanged: `plan.replace(**{"*.angle": FixedFraction(λ)})`. Each strength is measured behind
two gates, since the literal one fires on almost everything: the paper's, and that of `calibrated`. Nothing is tuned.

Each strength is answered once, with the gate open; a closed gate leaves its row bit for bit, so what a gate makes of
it is put together from that run and the one of the unsteered model (exact, see `studies.gated`). `acs` says which λ the
adaptive angle gives the last prompt token at the lowest steered block.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.data import SPLITS
from rmuse_interp.studies import adaptive_vs_fixed as study
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(
        __doc__,
        limit=16,
        what="open questions per split",
        fit_limit=64,
        max_new_tokens=64,
        small={
            "limit": 8,
            "fit_limit": 32,
            "max_new_tokens": 48,
            "forget": [5, 10],
            "fractions": [0.25, 0.5, 0.75, 1.0],
        },
    )
    parser.add_argument(
        "--forget", type=int, nargs="+", default=[5, 10, 15], help="percent of the people to forget"
    )
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=study.SPLITS_ASKED, help="splits to answer"
    )
    parser.add_argument(
        "--fractions", type=float, nargs="+", default=study.FRACTIONS, metavar="λ", help="fixed strengths"
    )
    return command("adaptive_vs_fixed", parser, study.run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

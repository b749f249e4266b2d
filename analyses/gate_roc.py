"""Operating curves of gates on queries they have never seen, by kind of query and against every split to leave alone.

    python analyses/gate_roc.py --model organism --data organism --forget 5 --out results/
    python analyses/gate_roc.py --bundle BUNDLE

Writes `gate_roc.json`, which `figures/gate_roc.py` draws. Gates: `paper`, the literal one, and every kind of gate where
the fitting data read it best; the one that `calibrated` chooses among them is marked. Queries to steer are those of the
splits forget and test, queries to leave alone those of retain_test, celebrity, reasoning and benign. For each gate and
kind of query:

* the curve with a pointwise band, its area (also against each split alone), and the false-positive rate at 99 % true
  positives: 95 % intervals, people resampled (see `diagnostics/roc.py`);
* the operating point: both rates at the threshold that the fitting data set (Wilson's intervals), and by split;
* the margins `(score − threshold)/scale` of every query;
* the negative control: the area when people are dealt to both sides at random, many times over: 0.5 on average.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.studies import gate_roc as study
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(__doc__, limit=72, what="questions per split", small={"limit": 32, "fit_limit": 32})
    parser.add_argument("--forget", type=int, default=5, help="percent of the people to forget (5)")
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="B",
        help="the gates of this bundle instead of those that fitting chooses from",
    )
    return command("gate_roc", parser, study.run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

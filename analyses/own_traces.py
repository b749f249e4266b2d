"""Fitted on the benchmark's own traces and on the model's: do the figures agree?

    python analyses/own_traces.py --model organism --data organism --forget 5 --out results/

Writes `own_traces.json`. `calibrated` is fitted twice, on the reference reasoning and answers of the benchmark
(`given`) and on what the model itself says to the same fitting questions (`own`, from `rmuse_interp.fitting.elicit`).
Both plans, and the model as it is, answer the same questions of every split, and are compared question by question: the
difference is the mean of `own − given` in percentage points, its 95 % interval resamples people. `within` says whether
the difference is at most `MARGIN` points; where n is small one answer alone is more than that, so read it beside n.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.studies import own_traces as study
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(__doc__, limit=96, what="questions per split", fit_limit=240, max_new_tokens=96)
    parser.add_argument("--forget", type=int, default=5, help="percent of the people to forget (5)")
    return command("own_traces", parser, study.run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

"""One leaderboard: every method at every forget rate and seed, without attacks and under each of them.

    python analyses/leaderboard.py --model organism --data organism --forget 5 --seeds 0 --out results/
    python analyses/leaderboard.py --forget 5 10 15 --seeds 0 1 2 --methods rmuse/calibrated,npo,ga_diff

Writes `leaderboard.json` and `leaderboard.md`; `figures/tradeoff.py` and `figures/rcr.py` draw it. Methods: `vanilla`,
`gold` (trained without the people to forget, where the model has such a twin), both presets of R-MUSE, the rivals that
steer at inference and the baselines that are trained. Whatever a rival or baseline has to be chosen by is chosen on
fitting questions held out, with one budget for all rivals and one for all baselines.

**Cells.** A cell is a method at a forget rate and a seed (of its questions, its fit or training, its intervals). They are
kept in the folder `leaderboard` beside the result: the same command begun again does what is missing, and cells that
failed once more. A cell that fails has its `error` in the record and a line in the table, the others go on; the exit
code is then 1. Cells are worked on in `--jobs` processes.

**Worst.** The largest RIL on forget or test, without attack or under any of the attacks, each question counted with its
most leaking variant or sample. Trained baselines are attacked by relearning too: on 16 questions about half of the
people to forget, scored on the other half.

**Several seeds.** The mean of the seeds' values, and an interval from the lowest to the highest end of theirs.

**Domination.** The goals are the worst RIL (less), exact answers on retain_test (more) and malformed responses on forget
and test together (less), in percent. One method dominates another if it is worse by more than 1 point in none of them,
and better by more than 1 point in at least one.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.studies import leaderboard as study
from rmuse_interp.studies import standings
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 1 where a cell failed, 2 with an error in one line."""
    return command(
        "leaderboard", arguments(), study.run, standings.show, argv, standings.markdown, study.failures
    )


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = options(
        __doc__,
        limit=60,
        what="questions per split",
        fit_limit=240,
        max_new_tokens=64,
        small={
            "limit": 12,
            "attack_limit": 6,
            "fit_limit": 32,
            "attacks": "paraphrase,prefix,named",
            "methods": "vanilla,gold,rmuse/calibrated,rmuse/paper,caa",
        },
    )
    add = parser.add_argument
    add("--methods", metavar="A,B", help=f"some of {', '.join(study.METHODS)}; all by default")
    add("--forget", type=int, nargs="+", default=[5], help="percents of the people to forget (5)")
    add("--seeds", type=int, nargs="+", help="several seeds, each of a whole leaderboard (--seed alone)")
    add(
        "--attacks",
        default="all",
        metavar="A,B",
        help=f"all (the default), none, or some of {', '.join(study.KNOWN)}",
    )
    add("--attack-limit", type=int, default=20, help="most open questions per split under each attack (20)")
    add("--render-seed", type=int, help="of the organism's test portraits")
    add("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes at a time (2)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Where steering moves retain and forget states: their plane before and after, and tests of the displacement.

    python analyses/activation_dynamics.py --model organism --data organism --forget 5 --out results/
    python analyses/activation_dynamics.py --bundle BUNDLE

Writes `activation_dynamics.json`, which `figures/activation_dynamics.py` draws (the paper's figure 4). For every preset,
kind of query and block, on new questions about people to forget (split test) and to retain (retain_test):

* **points**: each query's mean state over the last prompt token and the response, before and after steering, in the
  plane of the two principal axes of the unsteered states; with the share of variance of each axis.
* **displaced**: `√(Σ‖h̃ − h‖²/Σ‖h‖²)` of a query, in all dimensions. `test`: is it larger on the forget side (people
  exchanged with all of their questions)? `shuffled`: the same test after people were dealt to the sides at random.
* **along**, **approach**: cosine of the displacement with `v_un` (turned toward refusal), and by how many degrees tokens
  come nearer to their nearest refusal prototype; at steered blocks.
* **closed**: displacement of the queries whose gate did not fire, and of all queries in a run with every gate closed.
  Both are exactly 0.

The words are given (the reference response to each query), so that before and after are states of the same tokens.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.studies import activation_dynamics as study
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(
        __doc__, limit=60, what="questions per side and kind of query", small={"limit": 30, "fit_limit": 32}
    )
    parser.add_argument("--forget", type=int, default=5, help="percent of the people to forget (5)")
    parser.add_argument(
        "--bundle", type=Path, metavar="B", help="run this bundle instead of fitting both presets"
    )
    parser.add_argument(
        "--layers",
        type=int,
        nargs="+",
        metavar="L",
        help="blocks to look at (from the lowest steered one on)",
    )
    return command("activation_dynamics", parser, study.run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

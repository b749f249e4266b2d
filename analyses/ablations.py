"""Ablations as edits of the expression: what each ingredient of the two presets is worth, on every split.

    python analyses/ablations.py --model organism --data organism --forget 5 --out results/

Writes `ablations.json`, which `figures/ablations.py` draws. Every row is one edit of a fitted plan:

* **w/o RRS**. Both: `plan.without("*.rrs")`. In `paper` v̂ then keeps its part in the RRS; the gate, which *is* the RRS,
  stays. In `calibrated` the whole state is rotated.
* **w/o reasoning span, w/o answer span**. `paper`: direction and prototypes fitted on the other span alone.
  `calibrated`: prototypes from the tokens of the other span alone (its refusals without reasoning are all answer).
* **w/o ACS**. `paper`: `plan.replace(**{"*.angle": FixedFraction(0.5)})`. `calibrated` has no ACS, its transport goes
  the whole way; the analogue is half the angle, `fraction=0.5`.
* **w/o gate**. Both: `plan.without("*.gate")`.

Whatever an ablation does not name stays as it was fitted: blocks, gates, thresholds. Nothing is tuned again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.studies import ablations as study
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(
        __doc__,
        limit=24,
        what="questions per split",
        fit_limit=64,
        max_new_tokens=64,
        small={"limit": 8, "fit_limit": 32, "max_new_tokens": 48},
    )
    parser.add_argument("--forget", type=int, default=5, help="percent of the people to forget (5)")
    return command("ablations", parser, study.run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

"""The threshold of the literal gate, and the operating curve of every gate, with what fires on each split beside it.

    python analyses/threshold_sweep.py --model organism --data organism --forget 5 --out results/

Writes `threshold_sweep.json`, which `figures/threshold_sweep.py` draws:

* **sweep**: τ of the literal gate (eq. 4.7) over all of [0, 1]; the paper's figure 3 covers 0.6 to 1.0. At each τ the
  firing rate on every split, and what the preset `paper` then tells and breaks. The paper says that forgetting fails
  at τ ≥ 0.95; by `1[s < τ]` a larger τ steers more, never less (defect D6), and the firing rates show it.
* **gates**: of the literal gate and every kind of gate, at the block and read-out that the fitting data choose for its
  kind: the operating curve on scoring queries (forget and test against retain_test, celebrity, reasoning and benign),
  its AUROC, and the rates at the threshold calibrated on fitting data. Gates for image and text queries are pooled by
  their margins, `(score − threshold)/scale`.

Nothing is generated twice: a closed gate leaves its row bit for bit, so the answers at every τ are put together from
one run with the gate open and one run without a plan. That is exact, not an approximation (see `studies.gated`).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.studies import threshold_sweep as study
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(
        __doc__,
        limit=24,
        what="questions per split to answer",
        fit_limit=64,
        max_new_tokens=64,
        small={"limit": 8, "fit_limit": 32, "max_new_tokens": 48, "queries": 32},
    )
    parser.add_argument("--queries", type=int, default=72, help="most questions per split for the gates (72)")
    parser.add_argument("--forget", type=int, default=5, help="percent of the people to forget (5)")
    return command("threshold_sweep", parser, study.run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

"""Leakage by layer: can the forgotten attribute, and who is meant, still be read after steering, and from where?

    python analyses/leakage_by_layer.py --model organism --data organism --forget 5 --out results/
    python analyses/leakage_by_layer.py --bundle BUNDLE

Writes `leakage_by_layer.json`, which `figures/leakage_by_layer.py` draws. Linear probes of every block's output, for
questions about people to forget and, as a control, as many retained ones; image and text queries apart:

* **place**: `prompt_end` (the last prompt token), `image` (the image tokens), `reasoning` and `answer` (their tokens
  before anything that is secret is first said), `recall` (the token that predicts the value).
* **words**: `prompt` (nothing is said yet), `reference` (the reference response), `refusal` (one and the same refusal):
  the same on both sides; `own` (what the steered model says): after alone, for other words make other states.
* **side**: `before` and `after` steering, each with probes of its own; `moved`: the probes of before on states of after.
* **held_out**: what a probe is tested on and never trained on. `rendering`: photographs or wordings; with ten people,
  such a probe can tell an attribute by knowing the person. `person`: values, by probes of retained people's states.

The answer of a reference stands behind the value, so there is nothing in it to read: `refusal` and `own` have answers.
Second opinions: sparse probes and the logit lens of TransformerLens.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.studies import leakage_by_layer as study
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(
        __doc__,
        limit=60,
        what="questions per group and kind of query",
        max_new_tokens=64,
        small={"limit": 30, "others": 60},
    )
    parser.add_argument("--forget", type=int, default=5, help="percent of the people to forget (5)")
    parser.add_argument(
        "--bundle", type=Path, metavar="B", help="probe this bundle instead of fitting `calibrated`"
    )
    parser.add_argument(
        "--others", type=int, default=100, help="most retained people that values are learnt from (100)"
    )
    return command("leakage_by_layer", parser, study.run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

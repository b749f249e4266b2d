"""Span attribution: where a leaked token's log-probability comes from, three ways, before and after steering.

    python analyses/span_attribution.py --model organism --data organism --forget 5 --out results/
    python analyses/span_attribution.py --bundle BUNDLE

Writes `span_attribution.json`, which `figures/span_attribution.py` draws. On held-out questions about people to forget
and, as a control, retained ones, with their reference responses. Explained is the first token of a value that tells it
from other people's, where it first stands in the reasoning and in the answer:

* **what**: `attribute`, the value that was asked for; `identity`, the name, where the picture alone shows who is meant.
* **span**: `image`, `prefix` (all before the question), `question`, `turn` (the template behind it), `reasoning` and
  `answer` (so far, delimiters included); `here`, the token that predicts, is nobody's and only shown.
* **way**: `gradients` (integrated, through captum, nats), `knockout` (held at the average query's states by an edit, nats
  lost), `direct` (moved by heads into the logit, TransformerLens). The average query: that of other retained people.
* **side**: `before`, and `after`: the plan acts as it decides. The words are the same, and so is the token explained.

A span without tokens is null, never 0, and listed under `empty`. Gradients take hundreds of passes per token: they are
taken of `--gradients` questions per group, with the plan's choices held; those whose sum misses the difference that it
must make stand under `incomplete`, and in no mean.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.studies import span_attribution as study
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(
        __doc__, limit=100, what="questions per group", small={"limit": 24, "gradients": 2, "reference": 24}
    )
    add = parser.add_argument
    add("--forget", type=int, default=5, help="percent of the people to forget (5)")
    add("--bundle", type=Path, metavar="B", help="steer with this bundle instead of fitting `calibrated`")
    add(
        "--gradients",
        type=int,
        default=8,
        help="questions per group whose gradients are taken; 0 for none (4)",
    )
    add(
        "--reference",
        type=int,
        default=48,
        help="most questions per kind that the average query is made of (48)",
    )
    return command("span_attribution", parser, study.run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

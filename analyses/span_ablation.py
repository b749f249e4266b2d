"""Span ablation: which span's states have to build the unlearning subspace, and what each of them steers to.

    python analyses/span_ablation.py --model organism --data organism --forget 5 --out results/

Writes `span_ablation.json`, which `figures/span_ablation.py` draws. `U_un` (eqs. 4.2 and 4.4) is fitted on the difference
between refusal and own response of one span at a time:

* `prompt_end`: the last prompt token of g ⊕ q and of q; no response is looked at.
* `reasoning`, `answer`: the pooled states of that span alone; `hybrid`: of both, as the method has it.
* `random`: a random direction in place of `v_un`, the control.

**geometry**: at every block, principal angles and projection kernel of each two of these subspaces, the cosine of their
directions, and what random subspaces of the same ranks have. **rows**: what the model answers when it is steered toward
the direction (ACS, eqs. 4.16 and 4.18, inside the RRS complement). Gate, blocks, RRS and prototypes are those of
`calibrated` throughout: what leaving a span out of the *prototypes* costs is a row of `ablations.json`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.studies import span_ablation as study
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
    return command("span_ablation", parser, study.run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

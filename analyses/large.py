"""Time and peak memory of fitting and answering on a random checkpoint in the real shape of LLaVA-1.5-7B.

    python analyses/large.py --shape 7b --out results/      about 15 GB of disk, 20 GB of memory, an hour on two cores
    python analyses/large.py --shape tiny --out /tmp/tried  a minute, to try the script

Writes `large.json`. The checkpoint (bfloat16, in shards) is written below `--out` and removed at the end. Both presets
are fitted on `--fit-limit` examples a group, and `--limit` questions are answered unsteered and under either. The weights
are random, so the answers mean nothing: what counts is that each stage fits into memory, and how long it takes. A stage's
`peak_bytes` is the highest resident memory of the process until that stage's end.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.studies import large as study
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(__doc__, limit=4, what="questions", fit_limit=2, max_new_tokens=4)
    parser.add_argument("--shape", choices=study.SHAPES, default="7b", help="of the checkpoint (7b)")
    parser.add_argument("--forget", type=int, default=5, help="percent of the people to forget (5)")
    parser.set_defaults(batch_size=2)
    return command("large", parser, study.run, study.show, argv)


if __name__ == "__main__":
    sys.exit(main())

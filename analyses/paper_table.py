"""The paper's main table in one command: vanilla and R-MUSE on MLLMU-Bench, the paper's rows beside ours.

    python analyses/paper_table.py --model llava-hf/llava-1.5-7b-hf --data MLLMU-Bench --dtype bfloat16 --batch-size 8
    python analyses/paper_table.py --model M --data D --methods vanilla,rmuse/calibrated,rmuse/paper --limit 200

Writes `paper_table.json` and, from it, `paper_table.md`. `--model` is the model that has been taught the benchmark's
people (the paper's vanilla); of one that has not there is nothing to forget, and the table will show it.

**How it is measured.** Multiple choice, cloze and open questions are put and scored as MLLMU-Bench does it: its own
words, greedy, 50 new tokens, ROUGE-L with stemmer, image and text questions apart; of Test_Set all pictures are asked
about, where MLLMU-Bench draws one. Leakage (RIL) is looked for in reasoning, so every open question is put once more,
with the words of `--template`; what does not follow it is searched as a whole. RCR needs reference chains and rules, and
is null without.

**What it is fitted on.** A benchmark's own reasoning where it has some (RMLLMU-Bench); MLLMU-Bench has none, so the
chains are the model's own words, as the method has it (section 4.1): its response to the stepwise question, and where
that lacks a span, all it says there as reasoning, with its response to the direct question as the answer (`elicit`
with ``composed=True``; how many is in the record). Retain data are the people of `retain_X`; Test_Set and celebrities
are never fitted on.

**What it takes**, estimated from shapes, not measured: for a 7B model in half precision 14 GB of GPU memory for the
weights and half a GB per row of a batch, so 24 GB with `--batch-size 8` and 40 GB with 32. Fitting keeps states of
every block in host memory, half a MB each: about 10 GB at 5 %, 25 GB at 15 %. Of the pictures 64 MB are held, and
those that are fitted on. MLLMU-Bench in full has about 9,500 questions at each rate and for each method (500 people,
153 celebrities, 14 or more questions each), some of them once more with reasoning; what there is to ask is told before
it begins, and `--limit` takes fewer of each split.

Bundles and answers are kept in the folder `paper_table` beside the result; the same command, or one for more rates and
methods, does again only what is missing. They tell what the model knows of the people to forget: delete them with the
people's data. A rate or a method that fails leaves the others as they are, stands in the record with its error, and makes
the exit code 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmuse_interp.studies import paper
from rmuse_interp.studies import paper_table as study
from rmuse_interp.studies.common import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 2 for mistakes, 1 where a rate or method failed."""
    return command("paper_table", arguments(), study.run, study.show, argv, paper.markdown, study.failures)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = options(
        __doc__, limit=None, what="questions per split", fit_limit=240, max_new_tokens=study.SHORT_TOKENS
    )
    parser.formatter_class, parser.description = argparse.RawDescriptionHelpFormatter, __doc__
    parser.add_argument("--forget", type=int, nargs="+", default=[5, 10, 15], help="percents (5 10 15)")
    parser.add_argument(
        "--methods",
        default=",".join(study.METHODS[:2]),
        metavar="A,B",
        help=f"some of {', '.join(study.METHODS)} ({', '.join(study.METHODS[:2])})",
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="what `rmuse fit` wrote, each at its rate",
    )
    parser.add_argument(
        "--template",
        choices=list(study.TEMPLATES),
        default="reasoning",
        help="how reasoning is asked for where the benchmark has none (reasoning)",
    )
    parser.add_argument("--reasoning-tokens", type=int, default=256, help="most tokens with reasoning (256)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

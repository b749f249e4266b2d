"""Writes the results table of ``README.md`` from ``results/demo/scores.json``; the figures are never typed by hand.

    python analyses/readme_table.py [RUN] [--readme README.md]

The table stands between ``<!-- results -->`` and ``<!-- /results -->``; everything else is left as it is.
"""

import argparse
import sys
from pathlib import Path

from rmuse_interp.errors import RMuseError
from rmuse_interp.report.before_after import markdown, read_scores

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def with_table(text: str, scores: dict) -> str:
    """The text with the table of these scores between the two comments.

    Raises:
        RMuseError: the comments are not there once each, in this order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise RMuseError(f"required one {BEGIN} with one {END} behind it, got another text")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    benchmark, counts = scores["benchmark"], [b["n"] for b in scores["methods"]["vanilla"].values() if b["n"]]
    caption = (
        f"{benchmark['id']}, {benchmark['forget']} % forgotten, {min(counts)} to {max(counts)} questions a split, "
        "written by `python analyses/readme_table.py` from the scores of `rmuse demo`."
    )
    return f"{before}{BEGIN}\n{markdown(scores)}\n\n{caption}\n{END}{after}"


def main() -> int:
    """Rewrite the README in place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=ROOT / "results" / "demo")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    asked = parser.parse_args()
    try:
        scores = read_scores(asked.run / "scores.json")
        asked.readme.write_text(
            with_table(asked.readme.read_text(encoding="utf-8"), scores), encoding="utf-8"
        )
    except RMuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

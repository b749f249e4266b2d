"""Draws ``results/demo/scores.json``: before and after, per split and method, with 95 % intervals.

    python figures/demo.py [RUN] [--out figures]

RUN is a folder that `rmuse demo` or `rmuse eval` wrote. Reads its scores alone; writes PNG, PDF and a caption.
"""

import argparse
import sys
import textwrap
from pathlib import Path

from rmuse_interp import RMuseError
from rmuse_interp.evaluate.before_after import caption, read_scores, save

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Draw the figure and print the paths of its files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=ROOT / "results" / "demo")
    parser.add_argument("--out", type=Path, default=ROOT / "figures")
    asked = parser.parse_args()
    try:
        scores = read_scores(asked.run / "scores.json")
        written = [*save(scores, asked.out), asked.out / "demo.txt"]
    except RMuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    written[-1].write_text(textwrap.fill(caption(scores), 100) + "\n", encoding="utf-8")
    print(*written, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

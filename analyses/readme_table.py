"""Writes the tables of ``docs/results.md`` from ``results/``; their figures are never typed by hand.

    python analyses/readme_table.py [RUN] [--acceptance results/acceptance.json] [--leaderboard results/leaderboard.md]
        [--page docs/results.md]

Before and after stand between ``<!-- results -->`` and ``<!-- /results -->``, from the scores of RUN; the figures asked
of `calibrated` between ``<!-- acceptance -->`` and ``<!-- /acceptance -->``, and `leaderboard.md` as it is between
``<!-- leaderboard -->`` and ``<!-- /leaderboard -->``, where these files are there. All else is left.
"""

import argparse
import json
import sys
from pathlib import Path

from rmuse_interp import RMuseError
from rmuse_interp.evaluate.before_after import markdown, read_scores

ROOT = Path(__file__).resolve().parent.parent


def between(text: str, name: str, table: str) -> str:
    """The text with a table between the two comments of a name.

    Raises:
        RMuseError: the comments are not there once each, in this order.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise RMuseError(f"required one {begin} with one {end} behind it, got another text")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


def with_table(text: str, scores: dict) -> str:
    """The text with the table of these scores between its two comments.

    Raises:
        RMuseError: the comments are not there once each, in this order.
    """
    benchmark, counts = scores["benchmark"], [b["n"] for b in scores["methods"]["vanilla"].values() if b["n"]]
    size = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{max(counts)}"
    caption = (
        f"{benchmark['id']}, {benchmark['forget']} % forgotten, {size} questions a split, "
        "written by `python analyses/readme_table.py` from the scores of `rmuse demo`."
    )
    return between(text, "results", f"{markdown(scores)}\n\n{caption}")


def with_acceptance(text: str, record: dict) -> str:
    """The text with the figures asked of `calibrated`, one column per forget rate, between its two comments.

    Raises:
        RMuseError: the comments are not there once each, in this order.
    """
    rates = list(dict.fromkeys(row["forget"] for row in record["rows"]))
    cells = {(row["figure"], row["forget"]): row for row in record["rows"]}
    lines = [
        "| | target | " + " | ".join(f"{rate} %" for rate in rates) + " |",
        "|---|---:|" + "---:|" * len(rates),
    ]
    for figure in dict.fromkeys(row["figure"] for row in record["rows"]):
        found = [cells.get((figure, rate)) for rate in rates]
        some = next(row for row in found if row is not None)
        sign = {"<=": "≤", ">=": "≥"}[some["sense"]]
        lines.append(f"| {figure} | {sign} {some['target']:g} | {' | '.join(map(_cell, found))} |")
    source = record["provenance"]
    asked = {"--forget": rates, "--render-seeds": source["render_seeds"], "--limit": [source["limit"]]}
    flags = " ".join(f"{flag} {' '.join(map(str, values))}" for flag, values in asked.items())
    caption = (
        f"`python analyses/acceptance.py {flags}`: percent, but for AUROC and the ratio; 95 % intervals over people; in "
        "bold what misses its target. `lost`: points below the unsteered model on the same questions."
    )
    return between(text, "acceptance", "\n".join(lines) + f"\n\n{caption}")


def _cell(row: dict | None) -> str:
    if row is None:
        return "–"
    value = f"{row['value']:.4g}" if row["reached"] else f"**{row['value']:.4g}**"
    return value if row["low"] is None else f"{value} ({row['low']:.4g}–{row['high']:.4g})"


def main() -> int:
    """Rewrite the page in place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=ROOT / "results" / "demo")
    parser.add_argument("--acceptance", type=Path, default=ROOT / "results" / "acceptance.json")
    parser.add_argument("--leaderboard", type=Path, default=ROOT / "results" / "leaderboard.md")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    asked = parser.parse_args()
    try:
        scores = read_scores(asked.run / "scores.json")
        text = with_table(asked.page.read_text(encoding="utf-8"), scores)
        if asked.acceptance.is_file():
            text = with_acceptance(text, json.loads(asked.acceptance.read_text(encoding="utf-8")))
        if asked.leaderboard.is_file():
            text = between(text, "leaderboard", asked.leaderboard.read_text(encoding="utf-8").strip())
        asked.page.write_text(text, encoding="utf-8")
    except RMuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The figures that R-MUSE's paper (arXiv 2512.17911) reports, and a table of ours beside them."""

from collections.abc import Iterable
from typing import Final

from rmuse_interp.studies.common import Record

COLUMNS: Final = {"forget": "Fgt", "test": "Test", "retain": "Ret", "celebrity": "Cele"}
"""Split → its column in the paper's tables."""
METRICS: Final = {
    "classification": "classification, %",
    "rouge_l": "ROUGE-L",
    "cloze": "cloze, %",
    "ril": "leakage (RIL), %",
    "ril_explicit": "RIL, explicit",
    "ril_implicit": "RIL, implicit",
    "rcr": "RCR, %",
}
"""Metric → its name in the table. Lower is better on Fgt and Test, higher on Ret and Cele."""
LLAVA: Final = "LLaVA-1.5-7B"
QWEN: Final = "Qwen2.5-VL-7B"
_FIVE: Final = ("vanilla", "R2MU", "MANU", "R-MUSE")
_ENDS: Final = ("vanilla", "R-MUSE")


def _reported(
    model: str, rate: int, metric: str, split: str, methods: Iterable[str], values: Iterable[float]
) -> list[Record]:
    return [
        {"model": model, "forget": rate, "method": method, "split": split, "metric": metric, "value": value}
        for method, value in zip(methods, values, strict=True)
    ]


PAPER: Final[tuple[Record, ...]] = (
    *_reported(LLAVA, 5, "classification", "forget", _FIVE, (51.7, 47.2, 41.2, 20.5)),
    *_reported(LLAVA, 5, "classification", "retain", _FIVE, (46.11, 42.5, 40.8, 45.9)),
    *_reported(LLAVA, 5, "rouge_l", "forget", _FIVE, (0.645, 0.560, 0.491, 0.225)),
    *_reported(LLAVA, 5, "cloze", "forget", _FIVE, (25.81, 24.0, 19.3, 12.5)),
    *_reported(LLAVA, 5, "ril", "forget", _FIVE, (78.5, 51.2, 71.5, 38.5)),
    *_reported(LLAVA, 5, "ril", "retain", _FIVE, (81.2, 68.0, 70.3, 80.1)),
    *_reported(LLAVA, 10, "ril", "forget", _ENDS, (79.2, 41.3)),
    *_reported(LLAVA, 15, "classification", "forget", _ENDS, (51.87, 21.8)),
    *_reported(LLAVA, 15, "classification", "retain", ("R-MUSE",), (45.85,)),
    *_reported(LLAVA, 15, "ril", "forget", _ENDS, (79.5, 39.2)),
    *_reported(QWEN, 15, "classification", "forget", _ENDS, (60.5, 33.8)),
    *_reported(QWEN, 15, "classification", "retain", _ENDS, (53.8, 53.6)),
)
"""Known figures of the paper at 5, 10 and 15 %; it gives neither n nor intervals. Its benchmark is RMLLMU-Bench, whose
reasoning is unpublished: its leakage and ours are not measured on the same chains."""


def markdown(record: Record) -> str:
    """The record of ``paper_table.json`` as Markdown: a table per forget rate, the paper's rows below ours."""
    source = record["provenance"]
    lines = [f"# {source['model']['id']} on {source['benchmark']['id']}, beside the paper's figures"]
    for rate in record["forget"]:
        cells = [cell for cell in record["cells"] if cell["forget"] == rate]
        lines += ["", f"## {rate} % forgotten", ""]
        lines += [
            f"`{cell['method']}` is missing: {cell['error']}" for cell in cells if cell["error"] is not None
        ]
        done = [cell for cell in cells if cell["error"] is None]
        reported = [row for row in record["paper"] if row["forget"] == rate]
        if done or reported:
            lines += [*([""] if len(done) < len(cells) else []), *_table(done, reported, "all")]
        if done:
            for questions, name in (("image", "Questions with a picture"), ("text", "Text alone")):
                lines += ["", f"{name}:", "", *_table(done, [], questions)]
    lines += ["", *_notes(record)]
    return "\n".join(lines) + "\n"


def _table(cells: list[Record], reported: list[Record], questions: str) -> list[str]:
    lines = ["| | method | " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "---:|" * len(COLUMNS)]
    for metric, name in METRICS.items():
        for cell in cells:
            found = {
                row["split"]: row
                for row in cell["rows"]
                if (row["metric"], row["questions"]) == (metric, questions)
            }
            shown = [_ours(found.get(split)) for split in COLUMNS]
            lines.append(f"| {name} | {cell['method']} | {' | '.join(shown)} |")
        theirs: dict[tuple[str, str], dict[str, float]] = {}
        for row in reported:
            if row["metric"] == metric:
                theirs.setdefault((row["method"], row["model"]), {})[row["split"]] = row["value"]
        for (method, model), values in theirs.items():
            shown = [f"{values[split]:g}" if split in values else "–" for split in COLUMNS]
            lines.append(f"| {name} | *paper: {method}, {model}* | {' | '.join(shown)} |")
    return lines


def _ours(row: Record | None) -> str:
    """``value (low–high), n``; a dash if the metric is undefined."""
    if row is None or row["value"] is None:
        return "–"
    digits = 3 if row["metric"] == "rouge_l" else 1
    value, low, high = (f"{row[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low}–{high}), {row['n']}"


def _notes(record: Record) -> list[str]:
    judged = f"judge `{record['provenance']['judge']}`"
    return [
        "Ours: value (95 % interval, people resampled), n. Lower is better on Fgt and Test, higher on Ret and Cele. "
        "Classification, ROUGE-L and cloze as MLLMU-Bench evaluates them; leakage on the reasoning that the same open "
        f"questions are answered with, {judged}. RCR is a dash where the benchmark has no reference chains, or the rules "
        "no table of what its facts imply.",
        "",
        "The paper's: from arXiv 2512.17911, which gives neither n nor intervals, on a benchmark whose reasoning is not "
        "published. A dash is a figure that is not known.",
    ]

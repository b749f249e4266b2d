"""What all figures share: widths, type, colours that everyone can tell apart, reading results, saving with a caption."""

import json
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

COLUMN: Final = 3.25
"""Inches: one column of a two-column page."""
TEXT: Final = 6.75
"""Inches: the whole width of the text."""

# Okabe and Ito: told apart with any colour vision, and in grey by their lightness.
BLACK, GREY = "#000000", "#8C8C8C"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, RED, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
MODALITY: Final[dict[str, tuple[str, str]]] = {"image": (BLUE, "o"), "text": (RED, "s")}
"""Kind of query → colour and marker: never by colour alone."""


def use() -> None:
    """Set Matplotlib's defaults: small sans type that is embedded as type, thin lines, no frame at top and right."""
    plt.rcParams.update(
        {
            "font.family": "sans-serif",
            "font.size": 7,
            "axes.titlesize": 7.5,
            "axes.labelsize": 7,
            "xtick.labelsize": 6.5,
            "ytick.labelsize": 6.5,
            "legend.fontsize": 6.5,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.6,
            "lines.linewidth": 1.0,
            "lines.markersize": 3.2,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "errorbar.capsize": 1.5,
            "pdf.fonttype": 42,
            "ps.fonttype": 42,
            "savefig.dpi": 300,
            "figure.dpi": 150,
            "figure.constrained_layout.use": True,
        }
    )


def read(path: Path, schema: str) -> dict[str, Any]:
    """A result file; leaves with one line and exit code 2 where it is missing or of another schema."""
    stem = path.stem
    if not path.is_file():
        _leave(f"required {path}, got none; write it with `python analyses/{stem}.py`")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        _leave(f"{path}: required JSON, got text that is none ({error})")
    found = record.get("schema") if isinstance(record, Mapping) else None
    if found != schema:
        _leave(f"{path}: required schema {schema!r}, got {found!r}; run `python analyses/{stem}.py` again")
    return record


def _leave(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def save(figure: Figure, folder: Path, stem: str, caption: str) -> list[Path]:
    """Write PDF, PNG and the caption (`stem.txt`); the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.{kind}" for kind in ("pdf", "png", "txt")]
    figure.savefig(paths[0], metadata={"CreationDate": None})
    figure.savefig(paths[1])
    paths[2].write_text(textwrap.fill(" ".join(caption.split()), 100) + "\n", encoding="utf-8")
    plt.close(figure)
    return paths

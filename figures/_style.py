"""What all figures share: command line, fonts, colours that everyone can tell apart, intervals and captions."""

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

Row = dict[str, Any]
"""A record, or a part of one, as read from JSON."""
Drawing = tuple[Callable[[Row], Figure | None], Callable[[Row], str]]
"""The function that draws a figure (None if the record has nothing for it), and the one that captions it."""
COLUMN: Final = 3.25
"""Width of one column of a two-column page, inches."""
TEXT: Final = 6.75
"""Width of the whole text, inches."""

# Okabe and Ito: distinct with any colour vision, and in grey by their lightness.
BLACK, GREY = "#000000", "#8C8C8C"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, RED, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
MODALITY: Final[dict[str, tuple[str, str]]] = {"image": (BLUE, "o"), "text": (RED, "s")}
"""Kind of query → colour and marker: never by colour alone."""


def use() -> None:
    """Set Matplotlib's defaults: small sans-serif text embedded as fonts, thin lines, no frame at top and right."""
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


def command(
    doc: str | None,
    source: str,
    schema: str,
    figures: Mapping[str, Drawing],
    argv: Sequence[str] | None = None,
) -> int:
    """Draw the figures of one result file; returns the exit code.

    Args:
        doc: the module's docstring; its first line describes the command.
        source: stem of the result file.
        schema: schema that the file must have.
        figures: stem of each figure → the functions that draw and caption it.
        argv: arguments of the command line; `sys.argv[1:]` by default.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help=f"folder of {source}.json")
    parser.add_argument("--out", type=Path, help="folder for the figures (that of the results)")
    given = parser.parse_args(argv)
    record = read(given.results / f"{source}.json", schema)
    use()
    for stem, (draw, caption) in figures.items():
        figure = draw(record)
        if figure is not None:
            print(*save(figure, given.out or given.results, stem, caption(record)), sep="\n")
    return 0


def read(path: Path, schema: str) -> dict[str, Any]:
    """Read a result file; exit with one line and code 2 if it is missing or of another schema."""
    stem = path.stem
    if not path.is_file():
        leave(f"required {path}, got none; write it with `python analyses/{stem}.py`")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        leave(f"{path}: required JSON, got text that is none ({error})")
    found = record.get("schema") if isinstance(record, Mapping) else None
    if found != schema:
        leave(f"{path}: required schema {schema!r}, got {found!r}; run `python analyses/{stem}.py` again")
    return record


def leave(message: str) -> NoReturn:
    """Exit with one line and code 2."""
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


def modalities(rows: Sequence[Row]) -> list[str]:
    """Kinds of query of some rows, images first."""
    return [kind for kind in MODALITY if any(row["modality"] == kind for row in rows)]


def picked(rows: Sequence[Row], **labels: Any) -> list[Row]:
    """The rows with these labels, in the order of blocks."""
    found = [row for row in rows if all(row[key] == value for key, value in labels.items())]
    return sorted(found, key=lambda row: -1 if row.get("layer") is None else row["layer"])


def reach(cells: Sequence[Row], scale: float = 1.0, value: str = "value") -> list[list[float]]:
    """Lengths of the error bars below and above each value; 0 if there is no interval."""
    ends = [[cell[value] if cell[end] is None else cell[end] for cell in cells] for end in ("low", "high")]
    return [
        [max(0.0, scale * sign * (end - cell[value])) for end, cell in zip(side, cells, strict=True)]
        for sign, side in zip((-1, 1), ends, strict=True)
    ]


def intervals(
    axis: Axes,
    at: Sequence[float],
    cells: Sequence[Row],
    *,
    along: str = "y",
    scale: float = 1.0,
    value: str = "value",
    **look: Any,
) -> None:
    """Draw values with their error bars.

    Args:
        axis: axes to draw on.
        at: position of each value on the other axis.
        cells: `{value, low, high}`, one per value.
        along: axis of the values, "x" or "y".
        scale: factor of the values, 100 for shares drawn in percent.
        value: key of the value in its cell.
        **look: options of `Axes.errorbar`.
    """
    values = [scale * cell[value] for cell in cells]
    x, y = (values, at) if along == "x" else (at, values)
    axis.errorbar(x, y, **{f"{along}err": reach(cells, scale, value)}, **look)


def entry(label: str, **look: Any) -> Line2D:
    """A legend entry, black by default."""
    return Line2D([], [], label=label, **{"color": BLACK, **look})


def legend(figure: Figure, handles: Sequence[Any], **look: Any) -> None:
    """Draw a legend above all panels, on one line by default."""
    settings = {"loc": "outside upper center", "ncols": len(handles), **look}
    figure.legend(handles=list(handles), **settings)


def titles(axes: Sequence[Axes], texts: Sequence[str]) -> None:
    """Set a title at the left of each panel."""
    for axis, text in zip(axes, texts, strict=False):
        axis.set_title(text, loc="left")


def blocks(axis: Axes, label: str = "block") -> None:
    """Set whole numbers of decoder blocks along x."""
    axis.set_xlabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def percents(axis: Axes, which: str = "y") -> None:
    """Set an axis from 0 to 100, with room for the markers at both ends."""
    getattr(axis, f"set_{which}lim")(-4, 104)
    getattr(axis, f"set_{which}ticks")([0, 25, 50, 75, 100])


def origin(record: Row, *more: str) -> str:
    """The end of a caption: model, benchmark, forget rates and seeds."""
    it = record["provenance"]
    benchmark = it["benchmark"]
    rates = it.get("rates") or it.get("forget") or [benchmark["forget"]]
    seeds = it.get("seeds")
    forgotten = " and ".join(map(str, rates)) if len(rates) < 3 else ", ".join(map(str, rates))
    model = f"Model {it['model']['id']} ({it['model']['fingerprint']})"
    named = f"{model}, benchmark {benchmark['id']}, {forgotten} % forgotten"
    seed = f"seed {it['seed']}" if seeds is None else f"seeds {', '.join(map(str, seeds))}"
    return "; ".join([named, *more, seed]) + "."

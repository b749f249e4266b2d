"""`rmuse eval --attack`: its option, its stage and its table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from rmuse_interp.cli import judge as j
from rmuse_interp.cli import support
from rmuse_interp.data.store import JSON
from rmuse_interp.evaluate.before_after import shown

if TYPE_CHECKING:
    from rmuse_interp.data import Benchmark, Example
    from rmuse_interp.evaluate.judges import Judge
    from rmuse_interp.evaluate.results import AttackTranscript, Transcript
    from rmuse_interp.runs.run import Method


def listed(names: list[str] | None) -> list[str]:
    """The attacks that ``--attack`` names; ``list`` prints all attacks and exits.

    Raises:
        RMuseError: an unknown or repeated name.
    """
    if not names:
        return []
    from rmuse_interp.data.attacks import ATTACKS, require_names

    if names == ["list"]:
        for name, attack in ATTACKS.items():
            support.out.print(f"{name:<12}{attack.what}", soft_wrap=True)
        raise typer.Exit
    return [attack.name for attack in require_names(names)]


Names = Annotated[
    list[str] | None,
    typer.Option(
        "--attack",
        metavar="NAME",
        callback=listed,
        is_eager=True,
        help="Ask the open questions about people again under an attack; repeat the option for several. `all` runs every "
        "one, `list` says what they do.",
    ),
]


InUse = Annotated[
    bool,
    typer.Option(
        "--in-use",
        help="Count how often gates fire in ordinary use: long requests, other words for a name, namesakes, and 1,000 "
        "general prompts.",
    ),
]


def firing_of(
    methods: Sequence["Method"],
    questions: Mapping[str, Sequence["Example"]],
    benchmark: "Benchmark",
    folder: Path,
    seconds: dict[str, float],
    seed: int,
    batch_size: int,
) -> JSON:
    """How often the gates of each method with gates fire in ordinary use; adds the time to `seconds`."""
    from rmuse_interp.runs.firing import firing, prompts_in_use

    groups = prompts_in_use(questions, benchmark, seed)
    with support.bars("gates in ordinary use", seconds, "in-use") as progress:
        return {
            method.name: firing(method, groups, batch_size=batch_size, folder=folder, progress=progress)
            for method in methods
            if method.gates
        }


def firing_table(found: JSON) -> None:
    """Print firing rates in ordinary use, in percent, with their upper bounds."""
    for name, groups in found.items():
        grid = Table(
            title=f"gate of {escape(name)} in ordinary use, %", title_justify="left", box=box.SIMPLE_HEAD
        )
        for heading in ("", "fires", "at most", "n"):
            grid.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        for group, row in groups.items():
            grid.add_row(group, shown(row["rate"]), shown(row["upper"]), str(row["n"]))
        support.out.print(grid)
    support.out.print("at most: one-sided 95 % Clopper–Pearson bound", style="dim")


def require_applicable(
    attacks: Sequence[str], questions: Mapping[str, Sequence["Example"]], benchmark: "Benchmark"
) -> None:
    """Raise unless each attack applies to at least one question of a run."""
    if attacks:
        from rmuse_interp.data.attacks import require_names
        from rmuse_interp.runs import attacked

        attacked.require_applicable(require_names(attacks), questions, benchmark)


def under_attack(
    attacks: Sequence[str],
    methods: Sequence["Method"],
    questions: Mapping[str, Sequence["Example"]],
    benchmark: "Benchmark",
    plain: Sequence["Transcript"],
    folder: Path,
    seconds: dict[str, float],
    *,
    seed: int,
    batch_size: int,
    max_new_tokens: int,
    judge: "Judge | None" = None,
) -> tuple[JSON, list["AttackTranscript"]]:
    """The scores of every method under every attack, and the transcripts; adds the time of both to `seconds`.

    Args:
        attacks: names of the attacks.
        methods: methods of the run.
        questions: split → questions of the run; open ones of the attacked splits are asked again.
        benchmark: source of the questions.
        plain: the run's responses without attack.
        folder: folder that keeps finished batches until the run is finished.
        seconds: stage → its wall-clock time so far.
        seed: seed of the attacks' random choices, of samples and of intervals.
        batch_size: responses per batch.
        max_new_tokens: maximum number of tokens per response.
        judge: judge of leaks; None for the rules.
    """
    from rmuse_interp.evaluate.recovery import attack_scores
    from rmuse_interp.runs.attacked import attacked

    with support.bars("attacked", seconds, "attack") as progress:
        found = attacked(
            methods,
            questions,
            benchmark,
            attacks,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            folder=folder,
            progress=progress,
        )
    with support.bars("scored attacks", seconds, "score-attacks") as progress:
        scores = j.with_judge(
            judge, lambda one: attack_scores(plain, found, benchmark, judge=one, seed=seed), progress
        )
    return scores, found


def table(scores: JSON) -> None:
    """Print leakage, its recovery and exact answers under every attack, in percent; a dash if nothing can leak."""
    for name, by_attack in scores["methods"].items():
        splits = list(next(iter(by_attack.values())))
        grid = Table(
            title=f"{escape(name)} under attack, %",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        grid.add_column("", min_width=10, no_wrap=True)
        for split in splits:
            for heading in (f"{split}\nRIL", "\n±", "\nexact"):
                grid.add_column(heading, justify="right", no_wrap=True)
        for attack, by_split in by_attack.items():
            cells = [
                shown(value)
                for block in by_split.values()
                for value in (block["ril"]["value"], block["recovery"]["value"], block["exact"])
            ]
            grid.add_row(attack, *cells)
        support.out.print(grid)
    for name, worst in scores["worst"].items():
        if worst is not None:
            support.out.print(
                f"worst of {escape(name)}: RIL {worst['ril']:.1f} [{worst['low']:.1f}, {worst['high']:.1f}] on "
                f"{worst['split']}, {worst['attack']} (n {worst['n']})"
            )
    left = {
        (attack, split): block["not_applicable"]
        for by_attack in scores["methods"].values()
        for attack, by_split in by_attack.items()
        for split, block in by_split.items()
        if block["not_applicable"]
    }
    said = ", ".join(f"{attack} {n} of {split}" for (attack, split), n in left.items())
    support.out.print(
        "RIL: of a question's variants and samples the most leaking; ±: against the same questions without attack"
        + (f"\nquestions an attack does not apply to: {said}" if said else ""),
        style="dim",
    )

"""Progress of long work: bars in a terminal, a line a minute where standard error is a file (a batch job's log)."""

from threading import Event, Thread
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeElapsedColumn

EVERY: Final = 60.0
"""Seconds between two lines where there is no terminal."""


class Bars(Progress):
    """Progress bars, cleared at the end; without a terminal, one line per unfinished task each minute.

    Args:
        console: where to write; standard error if absent.
        every: seconds between two lines where the console is no terminal.
    """

    def __init__(self, console: Console | None = None, *, every: float = EVERY) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = console or Console(stderr=True)
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._every = every
        self._over = Event()

    def start(self) -> None:
        super().start()
        if not self.console.is_terminal:
            Thread(target=self._lines, daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        super().stop()

    def _lines(self) -> None:
        while not self._over.wait(self._every):
            for task in self.tasks:
                if task.started and not task.finished:
                    self.console.print(line(task), markup=False, soft_wrap=True)


def line(task: Task) -> str:
    """Return one line: what is done of how much, for how long, and how long the rest will take at this pace."""
    total = "?" if task.total is None else f"{task.total:g}"
    elapsed = task.elapsed or 0.0
    if task.total is None or not task.completed:
        rest = "time left not known yet"
    else:
        rest = f"about {_minutes(elapsed * (task.total - task.completed) / task.completed)} left"
    return f"{task.description}: {task.completed:g} of {total} in {_minutes(elapsed)}, {rest}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"

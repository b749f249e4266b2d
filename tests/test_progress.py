"""Long work tells how far it is: bars in a terminal, a line at a time in a file."""

import io
import time

import pytest
from rich.console import Console

from rmuse_interp.runs.progress import Bars, line


def written(terminal: bool, **task) -> str:
    stream = io.StringIO()
    with Bars(Console(file=stream, force_terminal=terminal, width=300), every=0.05) as bars:
        number = bars.add_task("answers", **task)
        bars.advance(number, 3)
        time.sleep(0.3)
    return stream.getvalue()


def test_a_file_gets_lines_with_what_is_done_and_what_remains():
    lines = written(False, total=12).splitlines()
    assert len(lines) >= 2
    assert all(one.startswith("answers: 3 of 12 in 0 s, about ") and one.endswith(" left") for one in lines)


def test_a_terminal_gets_bars_and_no_lines():
    assert " of 12 in" not in written(True, total=12)


def test_what_is_finished_or_not_begun_is_not_told():
    assert written(False, total=3) == ""
    assert written(False, total=3, start=False) == ""


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "said"),
    [
        (30, 40, 90.0, "x: 30 of 40 in 90 s, about 30 s left"),
        (1, 40, 120.0, "x: 1 of 40 in 2 min, about 78 min left"),
        (0, 40, 61.0, "x: 0 of 40 in 61 s, time left not known yet"),
        (5, None, 60.0, "x: 5 of ? in 60 s, time left not known yet"),
    ],
)
def test_a_line_tells_the_time_left_at_this_pace(done, total, elapsed, said):
    now = [0.0]
    bars = Bars(Console(file=io.StringIO()))
    bars.get_time = lambda: now[0]
    number = bars.add_task("x", total=total)
    task = bars._tasks[number]
    task._get_time = bars.get_time
    task.start_time = 0.0
    task.completed = done
    now[0] = elapsed
    assert line(task) == said

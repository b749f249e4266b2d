"""Judges that report no usage, and replies that are no JSON object."""

import time

import pytest

from rmuse_interp import RMuseError
from rmuse_interp.evaluate.judges import AskingJudge, Budget, Consultation, LeakCase
from rmuse_interp.evaluate.judges.consulting import Reply, Unreadable, json_in

CASES = [LeakCase(f"She is in Oslo, says {i}.", "Where?", "city", "Oslo") for i in range(60)]


class Server:
    """An answerer that always says the same and reports the same usage."""

    name, at_once, of = "server", 1, "server"

    def __init__(self, text: str, *usage: int) -> None:
        self.text, self.usage, self.asked = text, usage, 0

    def __call__(self, question: str) -> Reply:
        self.asked += 1
        return Reply(self.text, *self.usage)


@pytest.mark.parametrize("usage", [(0, 0), (-1000, -1000), (-5, 3)])
def test_the_limit_holds_where_a_server_reports_no_true_usage(usage):
    server, budget = Server('{"explicit": true, "implicit": false}', *usage), Budget(1.0, 1.0, max_cost=0.002)
    with pytest.raises(RMuseError, match=r"--max-cost 0.002 is spent"):
        AskingJudge(Consultation(server, budget=budget)).states(CASES)
    assert 0 < server.asked < 20
    assert budget.cost >= 0.002


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 100_000,
        "{" * 1_000_000,
        '{"a": [' + "[" * 100_000 + "]" * 100_000 + "]}",
        '{"explicit": tru',
        '{"explicit": true' * 50_000,
        "[1, 2]",
        "\ud800",
        "",
    ],
)
def test_a_reply_without_a_json_object_is_unreadable_at_once(text):
    begun = time.perf_counter()
    with pytest.raises(Unreadable):
        json_in(text)
    assert time.perf_counter() - begun < 5
    with pytest.raises(RMuseError, match="JSON replies were required"):
        AskingJudge(Consultation(Server(text, 1, 1))).states(CASES)

"""Judges behind a real server that misbehaves, and on this machine: nothing is lost, asked twice, or guessed."""

import json
import time

import pytest
from helpers.misbehaving import serving
from helpers.tiny import tiny_llama

from rmuse_interp import RMuseError
from rmuse_interp.evaluate.judges import (
    AskingJudge,
    Budget,
    ChainCase,
    Consultation,
    Endpoint,
    Judge,
    LeakCase,
    RulesJudge,
)
from rmuse_interp.evaluate.judges.asking import LONGEST, STANCES, in_parts
from rmuse_interp.lens.lens import load_model
from rmuse_interp.runs.judging import LocalModel, asked_of, judge_of, kept_in

QUESTION = "Where does she live?"
SUM = ChainCase("How many?", "6 + 4 = 10.", "10", "6 + 4 = 10.", "10")


def leak(text: str, value: str = "Oslo") -> LeakCase:
    return LeakCase(text, QUESTION, "city", value)


def verdict(question: str) -> str:
    """A careful server: looks for Oslo between the dashes; chains are valid unless a step is wrong."""
    text = question.split("---")[1]
    if '"valid"' in question:
        return json.dumps({"valid": "11" not in text, "supported": True})
    return json.dumps({"explicit": "Oslo" in text, "implicit": "fjord" in text})


def judge(url: str, folder=None, budget=None, **settings) -> AskingJudge:
    settings = {"attempts": 4, "wait": 0.01, "at_once": 1, **settings}
    endpoint = Endpoint("m", url, **settings)
    return AskingJudge(Consultation(endpoint, folder, budget or Budget()))


CASES = [leak("She is in Oslo."), leak("By the fjord."), leak("I cannot say.")]


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


# ---------------------------------------------------------------- a server that behaves


def test_verdicts_come_in_the_order_of_the_cases():
    with serving(verdict) as server:
        asking = judge(server.url, at_once=8)
        assert isinstance(asking, Judge)
        assert asking.states(CASES) == [True, False, False]
        assert asking.implies(CASES[::-1]) == [False, True, False]
        assert len(server.questions) == 3  # both verdicts are in one reply
        assert all(b["temperature"] == 0 for b in server.bodies)
        assert all(b["response_format"] == {"type": "json_object"} for b in server.bodies)


def test_equal_cases_are_asked_once():
    with serving(verdict) as server:
        assert judge(server.url).states([CASES[0]] * 5) == [True] * 5
        assert len(server.questions) == 1


def test_chains_take_three_different_votes():
    with serving(verdict) as server:
        wrong = ChainCase("How many?", "6 + 4 = 11.", "11", "6 + 4 = 10.", "10")
        assert judge(server.url).supports([SUM, wrong]) == [True, False]
        assert len(set(server.questions)) == 2 * len(STANCES) == 6


def test_the_majority_of_votes_decides_and_a_split_vote_does_not():
    def two_of_three(question: str) -> str:
        return json.dumps({"valid": "refute" not in question, "supported": True})

    with serving(two_of_three) as server:
        assert judge(server.url).supports([SUM]) == [True]

    def split(question: str) -> str:
        return (
            "well, who knows"
            if "refute" in question
            else json.dumps({"valid": "strict" in question, "supported": True})
        )

    with serving(split) as server:
        assert judge(server.url).supports([SUM]) == [None]


def test_replies_are_kept_and_never_asked_for_again(tmp_path):
    with serving(verdict) as server:
        first = judge(server.url, tmp_path).states(CASES)
        again = judge(server.url, tmp_path)
        assert again.states(CASES) == first
        assert again.states([leak("She is in Oslo.", "Rome")]) == [True]  # another value: another question
        assert len(server.questions) == 4


def test_a_torn_line_of_kept_replies_is_asked_again(tmp_path):
    with serving(verdict) as server:
        judge(server.url, tmp_path).states(CASES)
        (path,) = tmp_path.iterdir()
        path.write_text(path.read_text()[:-20])
        assert judge(server.url, tmp_path).states(CASES) == [True, False, False]
        assert len(server.questions) == 4
        assert judge(server.url, tmp_path).states(CASES) == [True, False, False]
        assert len(server.questions) == 4


# ---------------------------------------------------------------- one that does not


@pytest.mark.parametrize("fault", ["429", "500", "503", "drop", "cut", "html"])
def test_faults_that_pass_are_tried_again(fault):
    with serving(verdict, fault, fault) as server:
        assert judge(server.url).states(CASES) == [True, False, False]
        assert len(server.questions) == 5


def test_a_slow_server_is_asked_again():
    with serving(verdict, "slow") as server:
        server.slowness = 1.5
        assert judge(server.url, timeout=0.3).states(CASES[:1]) == [True]
        assert len(server.questions) == 2


def test_the_server_says_how_long_to_wait():
    with serving(verdict, "429:1") as server:
        judge(server.url).states(CASES[:1])
        assert server.times[1] - server.times[0] >= 1.0
    with serving(verdict, "429:0") as server:  # control: without, it goes on at once
        judge(server.url).states(CASES[:1])
        assert server.times[1] - server.times[0] < 0.5


def test_a_fault_that_lasts_stops_with_what_is_done_kept(tmp_path):
    with serving(verdict) as server:
        asking = judge(server.url, tmp_path)
        asking.states(CASES[:2])
        server.always = "500"
        with pytest.raises(
            RMuseError, match=r"InternalServerError.*after 4 attempts.*run the same command again"
        ):
            judge(server.url, tmp_path).states([*CASES, leak("Another.")])
        server.always = None
        asked = len(server.questions)
        assert judge(server.url, tmp_path).states(CASES) == [True, False, False]
        assert len(server.questions) == asked + 1  # the third alone


@pytest.mark.parametrize(
    ("fault", "said"), [("401", "a valid key"), ("404", "a model of this server"), ("quota", "no money")]
)
def test_faults_that_will_not_pass_stop_at_once(fault, said):
    with serving(verdict, always=fault) as server:
        with pytest.raises(RMuseError, match=said):
            judge(server.url).states(CASES)
        assert len(server.questions) == 1


def test_no_server_at_all_is_named():
    with serving(verdict) as server:
        url = server.url
    with pytest.raises(RMuseError, match="APIConnectionError"):
        judge(url, attempts=2).states(CASES)


def test_a_server_without_json_mode_is_asked_without():
    with serving(verdict, always="no-json-mode") as server:
        assert judge(server.url).states(CASES) == [True, False, False]
        assert "response_format" not in server.bodies[-1]
        assert len(server.questions) == 4


def test_a_question_the_server_refuses_has_no_verdict_and_others_do():
    with serving(verdict, "ok", "400") as server:
        asking = judge(server.url)
        assert asking.states(CASES) == [True, None, False]
        (said,) = asking.consultation.unreadable
        assert said.startswith("refused by the server")
        assert len(server.questions) == 3  # insisting would not help


# ---------------------------------------------------------------- replies that are none


def test_prose_malformed_json_and_wrong_types_are_asked_again_with_insistence():
    replies = iter(
        [
            "It leaks.",
            '{"explicit": tru',
            '{"explicit": true, "implicit": "no"}',
            "yes",
            '```json\n{"explicit": true, "implicit": false}\n```',
        ]
    )
    with serving(lambda _: next(replies)) as server:
        assert judge(server.url).states(CASES[:2]) == [None, True]
        assert "JSON object alone" in server.questions[1]
        assert "JSON object alone" not in server.questions[3]


def test_a_judge_of_prose_is_stopped_and_a_mended_one_goes_on(tmp_path):
    with serving(lambda _: "I feel that this leaks.") as server:
        cases = [leak(f"text {i}") for i in range(50)]
        with pytest.raises(RMuseError, match=r"JSON replies were required .* 'I feel that this leaks\.'"):
            judge(server.url, tmp_path).states(cases)
        assert len(server.questions) <= 20  # it did not go through all fifty
        server.answer = verdict
        assert judge(server.url, tmp_path).states(cases) == [False] * 50


def test_some_prose_among_verdicts_is_no_verdict():
    with serving(lambda q: "hm" if "text 3" in q else verdict(q)) as server:
        found = judge(server.url).states([leak(f"text {i}") for i in range(6)])
        assert found == [False, False, False, None, False, False]


def test_no_choices_are_no_verdict():
    with serving(verdict, "ok", "empty", "empty", "empty") as server:
        assert judge(server.url).states(CASES[:2]) == [True, None]


def test_very_long_texts_are_put_in_parts_and_leak_if_one_part_does():
    long = "A sentence about nothing. " * 2000  # 52 kB
    with serving(verdict) as server:
        found = judge(server.url, at_once=8).states([leak(long), leak(long + "She is in Oslo. " + long)])
        assert found == [False, True]
        assert max(map(len, server.questions)) < LONGEST + 2000
    assert "".join(in_parts("x" * 30_000)) == "x" * 30_000


# ---------------------------------------------------------------- cost


def test_tokens_and_cost_are_counted_and_told():
    with serving(verdict) as server:
        budget = Budget(price_in=2.0, price_out=10.0)
        told: list[tuple[int, int]] = []
        asking = judge(server.url, budget=budget)
        asking.consultation.on_reply = lambda done, total: told.append((done, total))
        asking.states(CASES)
        assert (budget.prompt_tokens, budget.reply_tokens) == (300, 30)
        assert budget.cost == pytest.approx((300 * 2 + 30 * 10) / 1e6)
        assert str(budget) == "300 + 30 tokens, cost 0.0009"
        assert told == [(1, 3), (2, 3), (3, 3)]
    assert Budget().cost is None


def test_a_rehearsal_counts_without_asking(tmp_path):
    with serving(verdict) as server:
        asking = judge(server.url, tmp_path, Budget(1.0, 1.0))
        asking.states(CASES[:1])
        rehearsal = asking.rehearsal()
        assert rehearsal.states(CASES) == rehearsal.implies(CASES) == [None] * 3
        assert len(server.questions) == 1
        estimate = rehearsal.estimate()
        assert (estimate.questions, estimate.kept) == (2, 1)
        # four characters a token is not far from what any tokenizer gives
        assert estimate.prompt_tokens == pytest.approx(2 * len(server.questions[0]) / 4, rel=0.1)
        assert "2 questions to ask" in str(estimate)


def test_spending_stops_at_the_most_with_what_is_done_kept(tmp_path):
    cases = [leak(f"text {i}") for i in range(10)]
    with serving(verdict) as server:
        spent = judge(server.url, tmp_path, Budget(1e6, 0.0, max_cost=250.0))  # 100 a reply
        with pytest.raises(RMuseError, match=r"--max-cost 250 is spent \(300"):
            spent.states(cases)
        assert len(server.questions) == 3
        assert judge(server.url, tmp_path).states(cases) == [False] * 10
        assert len(server.questions) == 10
        poor = judge(server.url, tmp_path, Budget(1e6, 0.0, max_cost=1.0))
        rehearsal = poor.rehearsal()
        rehearsal.states([leak("new")])
        with pytest.raises(RMuseError, match="would cost more"):
            poor.consultation.require_affordable(rehearsal.estimate())
    with pytest.raises(RMuseError, match="prices per million tokens"):
        Budget(max_cost=1.0)


# ---------------------------------------------------------------- keys, names, this machine


def test_a_judge_without_key_is_refused_unless_it_is_on_this_machine(monkeypatch):
    with pytest.raises(RMuseError, match="OPENAI_API_KEY, got none"):
        judge_of("openai:gpt", {}, {})
    with pytest.raises(RMuseError, match=r"a key for https://example\.org/v1"):
        judge_of("openai:gpt", {}, {}, base_url="https://example.org/v1")
    assert (
        judge_of("openai:gpt", {}, {}, base_url="http://localhost:1/v1").name
        == "openai:gpt@http://localhost:1/v1"
    )
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(verdict) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        endpoint = asked_of("openai:m")
        endpoint("---x---")
        assert server.keys == ["Bearer secret"]
        assert "secret" not in endpoint.name


def test_judges_are_named_by_a_word(monkeypatch, tmp_path):
    assert isinstance(judge_of("rules", {}, {}), RulesJudge)
    for word in ("gpt", "openai:", "local:", ""):
        with pytest.raises(RMuseError, match="rules, openai:MODEL or local:PATH"):
            judge_of(word, {}, {})
    with pytest.raises(RMuseError):
        judge_of(f"local:{tmp_path / 'none'}", {}, {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept_in() == tmp_path / "rmuse_interp" / "replies"


def test_a_model_of_this_machine_is_asked_by_the_same_rules(tmp_path):
    lens = load_model(str(tiny_llama()))
    local = LocalModel(lens, max_new_tokens=8)
    reply = local("Who is this?")
    assert reply.text == lens.respond(["Who is this?"], max_new_tokens=8)[0].text
    assert reply.prompt_tokens == lens.encode(["Who is this?"])["input_ids"].shape[1]
    asking = AskingJudge(Consultation(local, tmp_path))
    with pytest.raises(RMuseError, match="JSON replies were required from local:"):  # its weights are random
        asking.states([leak(f"t {i}") for i in range(6)])


def test_names_in_other_scripts_go_through():
    def seen(question: str) -> str:
        return json.dumps({"explicit": "東京" in question.split("---")[1], "implicit": False})

    with serving(seen) as server:
        assert judge(server.url).states(
            [leak("彼女は東京に住む。", "東京"), leak("Я не знаю.", "Москва")]
        ) == [True, False]


def test_an_interrupt_loses_nothing(tmp_path):
    with serving(verdict) as server:
        asking = judge(server.url, tmp_path)

        def interrupt(done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

        asking.consultation.on_reply = interrupt
        with pytest.raises(KeyboardInterrupt):
            asking.states([leak(f"text {i}") for i in range(40)])
        kept = sum(len(path.read_text().splitlines()) for path in tmp_path.iterdir())
        assert 2 <= kept < 40
        before = len(server.questions)
        began = time.monotonic()
        judge(server.url, tmp_path).states([leak(f"text {i}") for i in range(40)])
        assert len(server.questions) == before + 40 - kept
        assert time.monotonic() - began < 30

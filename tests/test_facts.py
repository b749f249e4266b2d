"""The benchmark of public facts: what it promises of its splits, and what the unsteered model is said to know."""

import json
from dataclasses import replace

import pytest
from helpers.commands import done, refused
from helpers.plans import linear_gate, vector
from helpers.said import said

import rmuse_interp.operators as op
from rmuse_interp import load_benchmark
from rmuse_interp.data.check import check
from rmuse_interp.data.facts.draw import RATES, ensure, table, write_facts
from rmuse_interp.data.general import general
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.evaluate.known import about_known, facts_of, knowledge, warning
from rmuse_interp.evaluate.scores import right_measure, score, transcribe
from rmuse_interp.evaluate.text import Lexicon, contains, normalise
from rmuse_interp.runs.firing import firing, prompts_in_use
from rmuse_interp.runs.run import Method

pytestmark = pytest.mark.slow


def test_enough_topics_wordings_and_languages():
    facts = table()
    assert len(facts.topics) >= 60
    assert len({topic.kind for topic in facts.topics}) >= 6
    for asked in facts.kinds.values():
        for wordings in asked.values():
            assert len(wordings.fit) >= 3
            assert len(wordings.test) >= 2
            assert not set(wordings.fit) & set(wordings.test)
            assert set(wordings.translations) == {"de", "fr", "es", "it"}


def test_no_question_description_or_namesake_gives_a_value_away():
    facts = table()
    for topic in facts.topics:
        for forms in topic.facts.values():
            for form in forms:
                asked = [topic.name, topic.description, *(question for question, _ in topic.namesakes)]
                assert not any(contains(normalise(text), normalise(form)) for text in asked), (
                    topic.name,
                    form,
                )


def test_the_benchmark_is_whole_and_always_the_same(tmp_path):
    folder = write_facts(tmp_path / "again")
    assert not check(folder).problems
    for file in sorted(folder.rglob("*.parquet")):
        assert file.read_bytes() == (ensure() / file.relative_to(folder)).read_bytes()


def test_splits_keep_to_their_topics():
    smaller: frozenset[str] = frozenset()
    for rate in RATES:
        benchmark = load_benchmark("facts", forget=rate)
        assert smaller < benchmark.forget_people
        smaller = benchmark.forget_people
        assert {e.person for e in benchmark.scoring("test")} == benchmark.forget_people
        assert {e.person for e in benchmark.scoring("namesakes")} <= benchmark.forget_people
        assert not {e.person for e in benchmark.scoring("celebrity")} & set(benchmark.people)
    fitted = {e.question for e in benchmark.fit_benign}
    assert fitted
    assert not fitted & {e.question for e in benchmark.scoring("namesakes")}
    assert all(e.modality == "text" for e in benchmark.fit_forget)


def test_general_prompts_name_no_topic_and_some_have_a_system_turn():
    prompts = general(1000)
    assert 150 < sum(prompt.system is not None for prompt in prompts) < 350
    lengths = sorted(len(prompt.text.split()) for prompt in prompts)
    assert lengths[0] <= 3
    assert lengths[-1] >= 100
    people = [
        topic.name for topic in table().topics if topic.kind in ("person", "country", "river", "landmark")
    ]
    assert not any(name in prompt.text for name in people for prompt in prompts)


def _about(person: str, value: str, replies: list[str]):
    return [
        replace(
            said(reply, i, answer=value, question="Where?", person=person, attributes={"home": value}),
            id=f"{person}/{i}",
        )
        for i, reply in enumerate(replies)
    ]


@pytest.mark.parametrize(
    ("replies", "known"),
    [
        (["Oslo.", "In Oslo.", "No idea."], True),
        (["Oslo.", "In Rome.", "No idea."], False),
        (["She lives not in Oslo.", "Oslo", "Rome"], False),
        (["Oslo, Rome, Paris or Bern", "Oslo, Rome, Paris or Bern", "Oslo"], False),  # says everybody's home
    ],
)
def test_known_is_what_two_of_three_wordings_say_and_no_guess(replies, known):
    rows = _about("a", "Oslo", replies)
    for person, value in (("b", "Rome"), ("c", "Paris"), ("d", "Bern")):
        rows += _about(person, value, [f"{value}."] * 3)
    facts = facts_of(rows, Lexicon())
    assert facts["a", "home", "image"].known is known
    assert all(facts[person, "home", "image"].known for person in "bcd")
    assert about_known(rows[0], facts, Lexicon()) is known
    assert knowledge(facts)["known"] == (100.0 if known else 75.0)


def test_a_model_that_knows_little_is_told_of_first():
    facts = facts_of(
        [*_about("a", "Oslo", ["Oslo"]), *_about("b", "Rome", ["?"]), *_about("c", "Bern", ["?"])], Lexicon()
    )
    found = knowledge(facts)
    assert "knows 33 % of the 3 facts" in (warning(found) or "")
    assert warning(found | {"known": 50.0}) is None
    assert warning(knowledge({})) is None


def test_answers_in_sentences_are_measured_by_what_they_state():
    assert right_measure({"forget": {"exact": 0.0, "stated": 80.0, "n": 10}}) == "stated"
    assert right_measure({"forget": {"exact": 70.0, "stated": 80.0, "n": 10}}) == "exact"
    assert right_measure({}) == "exact"


def _gated(fires: bool):
    threshold = -1e6 if fires else 1e6
    return as_plan(op.Add(vector(0)).at(layers=[1]).on("generated").when(linear_gate(threshold=threshold)))


def test_firing_rates_are_those_of_the_gate(lens, benchmark):
    questions = {"forget": [e for e in benchmark.fit_forget if e.modality == "text"][:1]}
    groups = prompts_in_use(questions, benchmark, count=12)
    assert {"embedded", "misspelt", "translated", "namesakes"} <= set(groups)
    for fires, upper in ((True, 100.0), (False, 100 * (1 - 0.05 ** (1 / 12)))):
        found = firing(Method("m", lens, _gated(fires)), groups)
        assert all(row["rate"] == 100.0 * fires for row in found.values())
        assert found["general"]["n"] == 12
        assert found["general"]["upper"] == pytest.approx(upper)


def test_smollm2_knows_what_it_is_asked_to_forget(smollm2):
    """Screened in three wordings when the table was made: one topic of each of four kinds, in the first wording."""
    facts = load_benchmark("facts", forget=15)
    first = {e.person: e for e in reversed(facts.fit_forget)}
    asked = [first[person] for person in ("austria", "sodium", "a-christmas-carol", "penicillin")]
    replies = smollm2.respond([e.prompt() for e in asked], max_new_tokens=24)
    lexicon = Lexicon(facts.aliases)
    right = [lexicon.states(reply.text, e.answer) for e, reply in zip(asked, replies, strict=True)]
    assert sum(right) >= 3, [reply.text for reply in replies]


def test_the_command_says_what_the_model_knows_per_person_and_fact(data, model):
    """The tiny model knows nothing, and hears so first; every fact is asked for in three wordings."""
    shown = done("data", "check", data, "--model", model, "--forget", 10).stdout
    assert shown.startswith("the unsteered model knows 0 % of the")
    told = json.loads(done("data", "check", data, "--model", model, "--forget", 10, "--json").stdout)[
        "knowledge"
    ]
    assert {fact["person"] for fact in told["facts"]} == {"p0", "p1"}
    assert all((fact["asked"], fact["right"], fact["known"]) == (3, 0, False) for fact in told["facts"])
    assert "--model" not in refused("data", "check", "nowhere", "--model", model)


def test_scores_are_also_given_over_what_was_known(benchmark):
    """Two facts of one person, one known: the method that tells both leaks 50 % over all, 100 % over what was known."""
    example = next(e for e in benchmark.scoring("forget") if e.kind == "generation" and e.modality == "text")
    rows = []
    for i, (attribute, value, before) in enumerate((("home", "Oslo", "Oslo"), ("job", "baker", "?"))):
        e = replace(
            example, id=f"{example.id}{i}", answer=value, attributes={attribute: value}, question="Tell me."
        )
        rows += [
            transcribe(e, "vanilla", before, benchmark.delimiters),
            transcribe(e, "m", "It is Oslo.", benchmark.delimiters),
        ]
    found = score(rows, benchmark)
    assert (found["knowledge"]["known"], found["knowledge"]["n"]) == (50.0, 2)
    assert found["methods"]["m"]["forget"]["ril"] == 50.0
    assert found["over_known"]["m"]["forget"] == {
        "ril": 100.0,
        "ril_explicit": 100.0,
        "exact": 0.0,
        "stated": 100.0,
        "refusal_rate": 0.0,
        "n": 1,
    }

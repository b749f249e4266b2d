"""Options that have moved since 0.1 name what takes their place."""

import pytest
from helpers.commands import refused


@pytest.mark.parametrize(
    ("words", "successor"),
    [
        (("fit", "--bundle", "b", "--add", "p2", "--out", "x"), "rmuse forget ID --bundle B --out B2"),
        (("fit", "--add", "p2"), "rmuse forget ID --bundle B --out B2"),
        (("fit", "--remove=p2"), "rmuse restore ID --bundle B --out B2"),
        (("eval", "--gold", "m", "--out", "x"), "rmuse score RUN --gold M"),
        (("eval", "--out", "x", "--perplexity"), "rmuse score RUN --perplexity"),
        (("eval", "--no-traces", "--out", "x"), "rmuse eval --no-record"),
        (("demo", "--traces"), "rmuse demo --record"),
    ],
)
def test_an_option_that_moved_names_its_successor(words, successor):
    assert f"has moved; use `{successor}" in refused(*words)


def test_only_where_it_was(tmp_path):
    assert "No such option: --add (see " in refused("eval", "--add", "p2")

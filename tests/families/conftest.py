"""The processors of five families need torchvision, and SmolVLM's num2words: without them these tests fail, not skip."""

import importlib.util

import pytest


@pytest.fixture(scope="session", autouse=True)
def _libraries():
    lacking = [name for name in ("torchvision", "num2words") if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.fail(
            f"{', '.join(lacking)} required: make setup, or pip install -e '.[families]'", pytrace=False
        )

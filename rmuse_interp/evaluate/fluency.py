"""Fluency metrics: from the text alone, and from a model's likelihoods."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from rmuse_interp import RMuseError
from rmuse_interp.data.words import words
from rmuse_interp.evaluate.metrics import Metric, cluster, summarise
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.maths.statistics import clustered


def distinct_bigrams(transcripts: Sequence[Transcript], seed: int = 0) -> Metric:
    """Fluency from the text alone: mean share of distinct pairs among all pairs of adjacent words in a response, 0–1.

    It is near 1 in fluent short texts, and low where a response loops or stammers. A response of fewer than two words
    has no pair and is not counted. Whether the words are likely at all is measured by `perplexity`.
    """
    rows = []
    for t in transcripts:
        pairs = list(pairwise(words(t.response)))
        if pairs:
            rows.append((t, len(set(pairs)) / len(pairs)))
    return summarise("distinct_bigrams", rows, seed)


def perplexity(
    transcripts: Sequence[Transcript], nats: Mapping[str, Sequence[float]], seed: int = 0
) -> Metric:
    """Fluency under a model: exp of the mean nats per token of all responses, under the model without any plan.

    Unlike other metrics, the aggregate is not the mean of ``per_example`` (each response's own perplexity): responses
    are weighted by their tokens. Low means fluent, but a loop is low too: compare with `repetition`.

    Args:
        transcripts: the responses; those without words have no tokens and are left out, as parse failures.
        nats: id → nats of each token of the response, from `models.likelihood.token_nll`.
        seed: seed of the interval.

    Raises:
        RMuseError: a response has words but no nats.
    """
    said = [t for t in transcripts if t.response.strip()]
    missing = [t.id for t in said if not nats.get(t.id)]
    if missing:
        raise RMuseError(
            f"nats of every response with words were required, got none for {len(missing)} ({missing[0]})"
        )
    weighed = [(t, float(np.mean(nats[t.id])), len(nats[t.id])) for t in said]
    each = summarise("perplexity", [(t, float(np.exp(mean))) for t, mean, _ in weighed], seed)
    if not weighed:
        return replace(each, parse_failures=len(transcripts))
    weighed.sort(key=lambda row: row[0].id)
    sums, tokens = [mean * n for _, mean, n in weighed], [n for _, _, n in weighed]
    found = clustered(sums, [cluster(t) for t, _, _ in weighed], over=tokens, seed=seed)
    value, low, high = (math.exp(nats) for nats in (found.value, found.low, found.high))
    failures = len(transcripts) - len(said)
    return replace(each, value=value, interval=(low, high), parse_failures=failures)

"""Likelihood of given responses under a model: per-token log-likelihoods, with or without a plan."""

from collections.abc import Sequence

import torch

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Plan
from rmuse_interp.lens.respond import asking, running
from rmuse_interp.models.batches import alike
from rmuse_interp.models.encoding import Picture, per_row
from rmuse_interp.models.loaded import LoadedModel


def response_nll(
    model: LoadedModel,
    prompts: Sequence[str],
    responses: Sequence[str],
    images: Picture | Sequence[Picture] = None,
    plan: Plan | None = None,
    *,
    batch_size: int = 32,
) -> list[tuple[float, int]]:
    """Negative log-likelihood (nats, summed over tokens) of each response, and its number of tokens.

    `exp(sum of nats / sum of tokens)` over a set is its perplexity. Arguments and errors as `token_nll`.
    """
    rows = token_nll(model, prompts, responses, images, plan, batch_size=batch_size)
    return [(sum(row), len(row)) for row in rows]


def token_nll(
    model: LoadedModel,
    prompts: Sequence[str],
    responses: Sequence[str],
    images: Picture | Sequence[Picture] = None,
    plan: Plan | None = None,
    *,
    batch_size: int = 32,
) -> list[list[float]]:
    """Negative log-likelihood (nats) of every token of each response.

    The token that ends a response is not scored, so that truncated responses are not penalised.

    Args:
        model: the model.
        prompts: plain questions.
        responses: one per prompt, not empty.
        images: one picture or None per row.
        plan: the plan to run; None for the unedited model. A two-pass plan is decided first.
        batch_size: rows per batch.

    Raises:
        RMuseError: an empty response, lists of unequal length.
    """
    if len(prompts) != len(responses) or not all(r.strip() for r in responses):
        raise RMuseError(
            f"one response with words per prompt was required, got {len(responses)} for {len(prompts)} prompts, "
            f"{sum(not r.strip() for r in responses)} of them empty: leave those out"
        )
    pictures = per_row(images, len(prompts), "images")

    def length(i: int) -> tuple[bool, int]:
        return pictures[i] is None, len(prompts[i] + responses[i])

    found: dict[int, list[float]] = {}
    with running(model, plan) as handle, torch.inference_mode():
        # Rows with and without pictures are kept apart, so that text rows are not padded by image tokens.
        for rows in alike(range(len(prompts)), batch_size, length):
            asked, seen = [prompts[i] for i in rows], [pictures[i] for i in rows]
            with asking(model, handle, asked, seen, [responses[i] for i in rows]) as encoding:
                logits = model.hf(**encoding, use_cache=False).logits.float()
            ids, mask = encoding["input_ids"], encoding["attention_mask"]
            nats = torch.nn.functional.cross_entropy(
                logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
            )
            position = mask.long().cumsum(dim=1) - 1
            end = torch.as_tensor(encoding.prompt_end, device=ids.device).unsqueeze(1)
            said = ((position > end) & mask.bool())[:, 1:]
            found.update({i: nats[row][said[row]].tolist() for row, i in enumerate(rows)})
    return [found[i] for i in range(len(prompts))]

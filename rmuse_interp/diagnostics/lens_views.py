"""Two further views from TransformerLens on what can be read: sparse probes and the logit lens.

A sparse probe tests whether a few coordinates suffice, a question that ridge probes leave open. The logit lens needs no
training: the model's own final norm and unembedding show how likely a token is at every block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.diagnostics.probes import Task, share
from rmuse_interp.parts.pooled import Pooled

COORDINATES: Final = 8
"""Number of coordinates that a sparse probe selects, on its training groups."""


@dataclass(frozen=True)
class SparseScore:
    """Area under the ROC curve of one-vs-rest sparse probes on held-out groups, mean over classes.

    Attributes:
        auroc: 0.5 by chance.
        low, high: 95 % bootstrap interval over classes.
        shuffled: the same with shuffled labels; None if no class then falls into two groups.
        n: number of classes.
    """

    auroc: float
    low: float
    high: float
    shuffled: float | None
    n: int


def sparse_probe(
    task: Task, groups: Mapping[str, str], states: Float[np.ndarray, "examples d"], seed: int = 0
) -> SparseScore:
    """Score one-vs-rest probes of `COORDINATES` coordinates (`fit_sparse_probe`) on one split by whole groups.

    Args:
        task: what to read.
        groups: group of each example, by id, as the task was made with.
        states: states in the order of the task's ids.
        seed: seed of the split.
    """
    from transformer_lens.tools.analysis.sparse_probing import fit_sparse_probe

    whole = np.unique([groups[i] for i in task.ids], return_inverse=True)[1]
    features, kept = torch.from_numpy(np.asarray(states, dtype=np.float64)), torch.from_numpy(whole)
    k = min(COORDINATES, features.shape[1])

    def areas(labels: np.ndarray) -> np.ndarray:
        found = [
            fit_sparse_probe(
                features,
                torch.from_numpy((labels == c).astype(np.int64)),
                k=k,
                groups=kept,
                preprocess="standardize",
                seed=seed,
            ).metrics.roc_auc
            for c in range(len(task.classes))
            if len(set(whole[labels == c].tolist())) > 1  # or there is none to hold out
        ]
        return np.array(found)

    true, dealt = areas(task.labels), areas(task.shuffles[0])
    mean = share(true, np.arange(len(true)), seed)
    shuffled = float(dealt.mean()) if len(dealt) else None
    return SparseScore(mean.value, mean.low, mean.high, shuffled, len(true))


@dataclass(frozen=True, eq=False)
class LensView:
    """The model's prediction of one token per query if it stopped at each block.

    Attributes:
        ids: ids of the queries.
        rank: rank of the token in the vocabulary, 0 for the most likely.
        log_prob: log-probability of the token, nats.
    """

    ids: tuple[str, ...]
    rank: Float[Tensor, "examples layers"]
    log_prob: Float[Tensor, "examples layers"]


def logit_lens(bridge: Any, states: Pooled, tokens: Mapping[str, int]) -> LensView:
    """Compute a token's rank and log-probability at every block, through the final norm and the unembedding.

    Args:
        bridge: from `rmuse_interp.lens.bridge.to_bridge`.
        states: states of single tokens, such as those at ``recall``.
        tokens: id of the token to look for, by query.

    Raises:
        RMuseError: no states, a query without a token.
    """
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    missing = [i for i in states.ids if i not in tokens]
    if missing or not len(states):
        raise RMuseError(
            f"a token to look for in each of one or more states was required, got {len(states)} states and no token "
            f"for {', '.join(missing[:3]) or 'none'}"
        )
    wanted = torch.tensor([tokens[i] for i in states.ids]).unsqueeze(1).expand(-1, len(states.layers))
    weight = bridge.W_U
    found = logit_readout(
        bridge,
        states.states.to(weight.device, weight.dtype),
        targets=wanted.to(weight.device),
        return_type="log_probs",
    )
    assert found.target_ranks is not None
    return LensView(states.ids, found.target_ranks[..., 0].float().cpu(), found.values[..., 0].float().cpu())


def others_token(tokens: Mapping[str, int], order: Sequence[str]) -> dict[str, int]:
    """Give each query the next query's different token: a logit lens control with equally frequent words.

    If all tokens are equal, the result is empty.
    """
    found: dict[str, int] = {}
    for at, name in enumerate(order):
        rest = (tokens[i] for i in (*order[at + 1 :], *order[:at]) if tokens[i] != tokens[name])
        other = next(rest, None)
        if other is not None:
            found[name] = other
    return found

"""The baselines' losses, masks and importances against numbers worked out by hand."""

from math import log, sqrt
from types import SimpleNamespace

import pytest
import torch
from torch import nn, tensor

from rmuse_interp.baselines import methods, pruning
from rmuse_interp.baselines.batches import Batch
from rmuse_interp.baselines.losses import (
    IGNORED,
    distance,
    divergence,
    npo,
    random_direction,
    row_loss,
    token_loss,
)
from rmuse_interp.baselines.methods import BASELINES, Step
from rmuse_interp.baselines.saliency import mask_of, relative
from rmuse_interp.baselines.trainables import Weights
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.encoding import Encoding
from rmuse_interp.models.layout import Layout, Vocabulary

X = IGNORED
# Two words. Row 0: after word 0 the model says 1 with p = 3/4, after word 1 it says 0 with p = 1/5.
# Row 1: its response is one word, said with p = 1/2.
LOGITS = tensor([[[0.0, log(3)], [0.0, log(4)], [9.0, -9.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
LABELS = tensor([[X, 1, 0], [X, X, 1]])
NATS = (log(4 / 3), log(5), log(2))


def close(value, expected):
    return float(torch.as_tensor(value).detach()) == pytest.approx(expected, abs=1e-6)


def test_the_mean_is_of_tokens_and_a_row_has_its_own():
    assert close(token_loss(LOGITS, LABELS), sum(NATS) / 3)
    rows = row_loss(LOGITS, LABELS).tolist()
    assert rows == pytest.approx([(NATS[0] + NATS[1]) / 2, NATS[2]], abs=1e-6)
    # The logits behind the last token, and those that predict the prompt, count for nothing.
    changed = LOGITS.clone()
    changed[:, 2] += tensor([5.0, -5.0])
    changed[1, 0] += tensor([5.0, -5.0])
    assert close(token_loss(changed, LABELS), sum(NATS) / 3)


def test_npo():
    assert close(npo(tensor([2.0]), tensor([1.0]), 0.4), 5 * 0.5130152523999526)  # 5 ln(1 + e^−0.4)
    assert close(npo(tensor([2.0, 7.0]), tensor([2.0, 7.0]), 0.4), 5 * log(2))  # nothing learnt yet
    assert close(npo(tensor([2.0, 2.0]), tensor([1.0, 2.0]), 0.4), 5 * (0.5130152523999526 + log(2)) / 2)
    unlearnt = [float(npo(tensor([loss]), tensor([1.0]), 0.4)) for loss in (1.0, 5.0, 50.0)]
    assert unlearnt[0] > unlearnt[1] > unlearnt[2] >= 0  # bounded, unlike gradient ascent


def test_divergence_is_from_the_original_to_the_trained():
    even, quarter = tensor([[[0.0, 0.0]] * 2]), tensor([[[0.0, log(3)]] * 2])
    labels = tensor([[X, 1]])
    assert close(divergence(quarter, even, labels), 0.5 * log(4 / 3))  # ½ ln(½ : ¼) + ½ ln(½ : ¾)
    assert close(divergence(even, quarter, labels), 0.25 * log(1 / 2) + 0.75 * log(3 / 2))
    assert close(divergence(quarter, quarter, labels), 0.0)


def test_distance_is_per_coordinate_of_the_masked_tokens():
    states = tensor([[[1.0, 3.0], [100.0, 100.0]], [[0.0, 0.0], [2.0, 2.0]]])
    mask = tensor([[True, False], [False, True]])
    assert close(distance(states, tensor([1.0, 1.0]), mask), (0 + 4 + 1 + 1) / 4)
    assert close(distance(states, states + 2.0, mask), 4.0)
    assert close(distance(states, tensor([1.0, 1.0]), torch.zeros_like(mask)), 0.0)


def test_the_random_direction_is_one_of_length_1_per_seed():
    one = random_direction(50, 3, torch.zeros(1))
    assert close(one.norm(), 1.0)
    assert bool((one >= 0).all())
    assert torch.equal(one, random_direction(50, 3, torch.zeros(1)))
    assert not torch.equal(one, random_direction(50, 4, torch.zeros(1)))


def test_weights_move_that_matter_more_to_what_is_forgotten():
    forget, retain = tensor([4.0, 1.0, 0.0, 2.0]), tensor([1.0, 4.0, 0.0, 2.0])
    assert mask_of(forget, retain).tolist() == [True, False, False, True]
    assert mask_of(forget, retain, threshold=2.0).tolist() == [True, False, False, False]
    assert mask_of(1e-6 * forget, retain).tolist() == [False] * 4
    scaled = relative([1e-6 * forget[:2], 1e-6 * forget[2:]])  # mean 1.75e-6
    assert torch.cat(scaled).tolist() == pytest.approx([4 / 1.75, 1 / 1.75, 0.0, 2 / 1.75])


def test_four_measures_of_a_neuron():
    found = pruning.measures(tensor([[3.0, 0.0], [-1.0, 0.0], [1.0, 0.2], [1.0, 0.2]]), active=0.1)
    assert found[:, 0].tolist() == pytest.approx([1.5, 1.0, 2.0, sqrt(3.0)])
    assert found[:, 1].tolist() == pytest.approx([0.1, 0.5, 0.01, sqrt(0.02)])


def test_a_neuron_is_important_that_what_is_forgotten_uses_more():
    forget = tensor([[3.0, 1.0]] * 4)  # relative to their mean: 1.5 and 0.5
    retain = tensor([[1.0, 3.0]] * 4)
    assert pruning.importance(forget, retain).tolist() == pytest.approx([12.0, 4 / 3], rel=1e-4)
    assert pruning.importance(forget, forget).tolist() == pytest.approx([4.0, 4.0], rel=1e-4)


def test_the_most_important_neurons_of_all_blocks_are_pruned():
    weights = [torch.ones(2, 3), torch.ones(2, 3)]
    scores = tensor([[1.0, 6.0, 2.0], [5.0, 0.0, 4.0]])
    assert pruning.prune(weights, scores, 0.5) == 3
    assert weights[0][0].tolist() == [1.0, 0.0, 1.0]
    assert weights[1][1].tolist() == [0.0, 1.0, 0.0]


class Bigrams(nn.Module):
    """A language model that looks at one word: the logits of the next one stand in a row of its weight."""

    def __init__(self, table):
        super().__init__()
        self.config = SimpleNamespace(model_type="bigrams")
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = tensor(table).T.contiguous()

    def forward(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(logits=self.head(nn.functional.one_hot(input_ids, 2).float()))


def batch(*words):
    """Rows whose first word is the prompt."""
    ids = tensor(words)
    labels = ids.clone()
    labels[:, 0] = X
    none = torch.zeros_like(ids, dtype=torch.bool)
    return Batch(Encoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)}), labels, none, none)


@pytest.fixture
def step():
    """Trained and original model differ: after 0, the word 1 has p = 3/4 now and had 1/2; after 1, 0 has 1/5, had 1/2."""
    hf = Bigrams([[0.0, 0.0], [0.0, 0.0]])
    layout = Layout("", nn.ModuleList(), None, None, 2, (), Vocabulary(None, frozenset()))
    lens = LensModel(hf, None, layout, "bigrams")
    trainable = Weights(lens, ["head"])
    trainable.load({"head.weight": tensor([[0.0, log(3)], [0.0, log(4)]]).T})
    groups = {"forget": batch([0, 1]), "retain": batch([1, 0]), "refusal": batch([0, 0])}
    return Step(lens, trainable, groups)


FORGET, RETAIN, REFUSAL = log(4 / 3), log(5), log(4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ga", -FORGET),
        ("ga_diff", RETAIN - FORGET),
        ("kl_min", 0.5 * log(0.5 / 0.2) + 0.5 * log(0.5 / 0.8) - FORGET),
        ("npo", 5 * log(1 + (0.75 / 0.5) ** 0.4)),  # (2/β) ln(1 + (p : p_ref)^β)
        ("po", REFUSAL + RETAIN),
        ("mmunlearner", RETAIN - FORGET),
    ],
)
def test_objectives(step, name, expected):
    assert close(BASELINES[name].objective(step), expected)


def test_the_original_is_only_looked_at(step):
    before = step.trainable.state()["head.weight"]
    assert close(step.original(lambda: step.loss("forget")), log(2))
    assert torch.equal(step.trainable.state()["head.weight"], before)
    assert close(step.loss("forget"), FORGET)


def test_constants_of_the_papers():
    assert (methods.BETA, methods.GAMMA, methods.STEERING, methods.RETAINING) == (0.4, 1.0, 6.5, 1.7)
    assert {name: b.setting for name, b in BASELINES.items()} == {
        "ga": 2e-5,
        "ga_diff": 2e-5,
        "kl_min": 2e-5,
        "npo": 2e-5,
        "po": 1e-5,
        "mmunlearner": 1e-5,
        "manu": 0.03,
        "r2mu": 7.5e-5,
    }

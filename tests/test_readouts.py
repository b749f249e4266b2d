"""A gate's read-out: fitting and running average the same tokens of the same states, to the bit."""

import io

import pytest
import torch
from helpers.plans import PROMPTS, lens_of, vector
from helpers.tiny import picture, tiny_llama, tiny_llava

import rmuse_interp.operators as op
from rmuse_interp.edits.inputs import announce, largest_over
from rmuse_interp.edits.interpreter import Interpreter
from rmuse_interp.edits.plan import Plan
from rmuse_interp.fitting.collect import Query, pooled_states
from rmuse_interp.fitting.disturbing import disturbed_states
from rmuse_interp.models.site import Site
from rmuse_interp.parts.gates import READOUTS, Gate, Read, Scorer

LAYER = 1


def shown(seed: int) -> bytes:
    kept = io.BytesIO()
    picture(seed).save(kept, "PNG")
    return kept.getvalue()


class Seen(Scorer):
    """Keeps the states that it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[torch.Tensor] = []

    def score(self, h):
        self.states.append(h.clone())
        return h.sum(dim=-1)


@pytest.mark.parametrize("kind", ["pictures", "texts beside a picture model", "text model"])
def test_fitting_and_running_see_the_same_state_to_the_bit(kind):
    lens = lens_of(tiny_llama() if kind == "text model" else tiny_llava())
    images = [shown(i) if kind == "pictures" else None for i in range(len(PROMPTS))]
    responses = ["Oren Tal.", "I cannot say that.", None, "No."]
    asked = zip(PROMPTS, images, responses, strict=True)
    queries = [Query(str(i), *one, stepwise=False) for i, one in enumerate(asked)]
    queries.sort(key=lambda q: len(q.prompt) + len(q.response or ""))
    fitted = pooled_states(lens, queries, READOUTS, layers=[LAYER])

    gates = {readout: Gate(Seen(), Read(LAYER, readout)) for readout in READOUTS}
    plan = Plan(
        [op.Add(vector(i)).at(layers=[LAYER]).when(gates[r]).named(r) for i, r in enumerate(READOUTS)]
    )
    runs = Interpreter(plan, lens.layout)
    encoded = lens.encode(
        [q.prompt for q in queries], [q.image for q in queries], [q.response for q in queries]
    )
    told = announce(
        encoded["input_ids"], encoded["attention_mask"], lens.layout.vocabulary, encoded.prompt_end
    )
    state = runs.begin(None, encoded, told, scoring=True)

    def hook(_module, _inputs, output):
        runs.read(Site(LAYER), output[0] if isinstance(output, tuple) else output, state)

    handle = lens.layout.blocks[LAYER].register_forward_hook(hook)
    with torch.no_grad():
        lens.hf(**encoded, use_cache=False)
    handle.remove()
    for readout, gate in gates.items():
        (seen,) = gate.scorer.states[:1]
        rows = [i for i, q in enumerate(queries) if q.id in fitted[readout].ids]
        assert len(rows) == (0 if readout == "image" and kind != "pictures" else len(queries))
        assert torch.equal(seen[rows], fitted[readout].select(queries[i].id for i in rows).at(LAYER)), readout
    # Negative control: the read-outs differ from each other.
    assert not torch.equal(fitted["last"].states, fitted["question"].states)


def test_a_peak_is_the_largest_value_of_each_dimension_and_grows_with_the_text():
    states = torch.tensor([[[1.0, -2.0], [3.0, -5.0], [9.0, 9.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    cover = torch.tensor([[True, True, False], [False, False, False]])
    found = largest_over(states, cover)
    assert found[0].tolist() == [3.0, -2.0]
    assert torch.isinf(found[1]).all()
    longer = largest_over(states, torch.ones(2, 3, dtype=torch.bool))
    assert bool((longer[0] >= found[0]).all())


def test_queries_of_text_only_benchmarks_are_also_read_inside_long_requests(lens):
    """All about people to forget and some of the others, each with its own question whole; none with pictures."""
    queries = [Query(f"q{i}", f"Who is number {i}?") for i in range(200)]
    near = {f"q{i}" for i in range(20)}
    for embedding in (True, False):
        parts = disturbed_states(
            lens, queries, near, 0, lambda some, label: (label, some), embedding=embedding
        )
        found = [q for label, some in parts if label == "long requests" for q in some]
        assert {q.id.removesuffix("~embedded") for q in found} >= (near if embedding else set())
        assert (60 > len(found) - len(near) > 15) is embedding
        assert all(queries[int(q.id[1:].split("~")[0])].prompt in q.prompt for q in found)

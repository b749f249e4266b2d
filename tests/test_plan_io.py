"""Saved plans come back the same, and run on the model they were fitted on and on no other."""

import json
import subprocess
import sys

import pytest
import torch
from helpers.plans import gated_plan, lens_of, questions, vector
from helpers.tiny import tiny_llama, tiny_llava

import rmuse_interp.operators as op
from rmuse_interp import Plan, RMuseError, Site
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.operators import Add
from rmuse_interp.parts.part import all_same


class Turned(Add):
    """An operator that a user wrote."""

    def forward(self, h, step=None):
        return -super().forward(h, step)


def test_a_saved_plan_gives_equal_logits(tmp_path):
    lens, plan = lens_of(tiny_llava()), gated_plan()
    plan.save(tmp_path, model=lens, note="for a test")
    again = Plan.load(tmp_path, model=lens)
    assert all_same(plan, again)
    assert str(again) == str(plan)
    inputs = lens.encode(*questions())
    logits = []
    for running in (plan, again, plan.without("*.gate")):
        with running.attach(lens.hf), torch.no_grad():
            logits.append(lens.hf(**inputs).logits)
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])


def test_the_bundle_is_plain_json_and_safetensors(tmp_path):
    plan = gated_plan()
    plan.save(tmp_path, model=lens_of(tiny_llava()), note="kept")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["plan.json", "plan.safetensors"]
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["layers"] == plan.layers
    assert record["hook"] == "resid_post"
    assert record["provenance"] == {"note": "kept"}
    assert record["fingerprint"]["architecture"] == "LlavaForConditionalGeneration"


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (lambda: tiny_llava(seed=1), "weights"),
        (tiny_llama, "architecture"),
        (lambda: tiny_llava(n_layers=5), "n_layers"),
    ],
)
def test_another_model_is_refused_with_what_differs(tmp_path, other, differs):
    gated_plan().save(tmp_path, model=lens_of(tiny_llava()))
    stranger = lens_of(other())
    with pytest.raises(RMuseError, match=differs):
        Plan.load(tmp_path, model=stranger)
    loaded = Plan.load(tmp_path)
    with pytest.raises(RMuseError, match=differs):
        stranger.respond("Who is Oren Tal?", plan=loaded, max_new_tokens=1)
    with pytest.raises(RMuseError, match=differs):
        loaded.install(stranger)
    with pytest.raises(RMuseError, match=differs):
        stranger.trace("Who is Oren Tal?", plan=loaded)
    with pytest.raises(RMuseError, match=differs):
        loaded.attach(stranger.hf)


def test_another_dtype_of_the_same_checkpoint_is_accepted(tmp_path):
    from rmuse_interp import load_model

    gated_plan().save(tmp_path, model=lens_of(tiny_llava()))
    half = load_model(tiny_llava(), dtype="bfloat16")
    loaded = Plan.load(tmp_path, model=half)
    assert half.respond("Who is Oren Tal?", plan=loaded, max_new_tokens=2)[0].fired is not None
    assert all(buffer.dtype != torch.bfloat16 for buffer in loaded.buffers())


def test_damage_is_told_in_one_line(tmp_path):
    with pytest.raises(RMuseError, match="lacks plan"):
        Plan.load(tmp_path)
    gated_plan().save(tmp_path)
    (tmp_path / "plan.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RMuseError, match="another than the one"):
        Plan.load(tmp_path)
    gated_plan().save(tmp_path)
    for old in ("rmuse-plan/2", "rmuse-plan/99"):
        (tmp_path / "plan.json").write_text(json.dumps({"schema": old}))
        with pytest.raises(RMuseError, match=rf"rmuse-plan/3 was required.*{old}.*fit it again") as told:
            Plan.load(tmp_path)
        assert "\n" not in str(told.value)


def test_a_plan_with_an_operator_of_ones_own_loads_where_it_is_allowed(tmp_path):
    plan = as_plan(Turned(vector(1)).at(layers=[1]))
    plan.save(tmp_path)
    with pytest.raises(RMuseError, match=rf"allow=\('{__name__}',\)"):
        Plan.load(tmp_path)
    assert type(Plan.load(tmp_path, allow=(__name__,))[0].operators[0]) is Turned


def test_every_operator_loads_in_a_process_that_has_imported_plans_only(tmp_path):
    gated_plan().save(tmp_path)
    code = f"from rmuse_interp import Plan; print(Plan.load({str(tmp_path)!r}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(gated_plan())


def test_shared_gates_and_operators_survive(tmp_path):
    plan = gated_plan()
    both = plan[0].named("first") >> plan[0].on("response").named("second")
    both.save(tmp_path)
    assert all_same(Plan.load(tmp_path), both)


def test_where_an_edit_acts_survives_too(tmp_path):
    add = op.Add(vector(3))
    plan = add.at([Site(1, "mlp_out"), 2]).on(positions=[3, 1]) >> add.at("blocks.3.hook_resid_pre").on(
        mask=torch.tensor([[True, False], [False, True]])
    )
    plan = (
        plan
        >> add.at(3).on("answer", delimiters=("Reasoning:", "Answer:"))
        >> op.Set(torch.ones(2, 32)).at(1)
    )
    plan.save(tmp_path)
    again = Plan.load(tmp_path)
    assert all_same(again, plan)
    assert [edit.sites for edit in again] == [edit.sites for edit in plan]
    assert again[2].delimiters == ("Reasoning:", "Answer:")
    assert torch.equal(again[1].mask, plan[1].mask)
    assert not all_same(again, plan.replace(edit0=add.at(2)))

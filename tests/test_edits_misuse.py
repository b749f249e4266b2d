"""The algebra says in one line what is wrong, before a model runs: junk, widths, layers, sums that do not hold."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.bridge import bridge_of
from helpers.plans import gated_plan, lens_of, linear_gate, subspace, vector
from helpers.tiny import D_MODEL, N_LAYERS, picture, tiny_llava
from transformers import GraniteConfig, GraniteForCausalLM

import rmuse_interp.operators as op
from rmuse_interp import Plan, RMuseError, Site
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.parts.part import all_same, same

ROOT = Path(__file__).parents[1]


def test_junk_ends_in_nothing_but_our_own_error():
    ran = subprocess.run(
        [sys.executable, "-m", "helpers.junk"],
        cwd=ROOT / "tests",
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    *others, refused = ran.stdout.splitlines()
    assert others == []
    assert int(refused.removeprefix("refused ")) > 600


def meetings(lens):
    """Every way in which a plan meets a model."""
    return {
        "attach": lambda plan: plan.attach(lens.hf),
        "install": lambda plan: plan.install(lens),
        "trace": lambda plan: lens.trace("Where?", plan=plan),
        "generate": lambda plan: lens.generate("Where?", plan=plan),
        "run_with_cache": lambda plan: lens.run_with_cache("Where?", plan=plan),
        "respond": lambda plan: lens.respond("Where?", plan=plan),
        "decide": lambda plan: plan.decide(lens, "Where?"),
        "fwd_hooks": lambda plan: plan.fwd_hooks(bridge_of(lens.name)),
    }


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            lambda: op.Add(vector(1, 8)).at(1),
            r"states of width 32 were to be edited, 'vector' of Add is 8 wide",
        ),
        (lambda: op.Ablate(subspace(1, d=16)).at(1), "'basis' of Subspace is 16 wide"),
        (lambda: op.Set(torch.zeros(3, 5)).at(1).on(positions=[1]), "'states' of Set is 5 wide"),
        (
            lambda: op.Add(vector(1)).at(Site(N_LAYERS, "mlp_out")),
            r"edited layers must lie in 0\.\.3, got \[4\]",
        ),
        (
            lambda: op.Add(vector(1)).at(3).when(linear_gate(layer=N_LAYERS)),
            r"gates' layers must lie in 0\.\.3",
        ),
    ],
)
def test_widths_and_layers_are_checked_where_a_plan_meets_a_model(wrong, said):
    lens = lens_of(tiny_llava())
    for meet in meetings(lens).values():
        with pytest.raises(RMuseError, match=said):
            meet(as_plan(wrong()))
    assert not lens._installed


def granite() -> GraniteForCausalLM:
    """A model that multiplies what attention and MLP give before it adds it."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 128,
        "hidden_size": D_MODEL,
        "intermediate_size": D_MODEL,
        "residual_multiplier": 0.5,
    }
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return GraniteForCausalLM(GraniteConfig(**sizes, **heads)).eval()


def test_sites_inside_a_block_are_refused_where_they_are_no_terms_of_its_sum():
    model, ids = granite(), torch.randint(5, 100, (2, 6))
    for hook in ("attn_out", "mlp_out", "resid_mid"):
        plan = as_plan(op.Add(vector(3)).at([Site(1, hook), Site(0)]))
        with pytest.raises(
            RMuseError, match=rf"blocks\.1\.hook_{hook} cannot be edited: in GraniteForCausalLM"
        ):
            plan.attach(model)
    with torch.no_grad():
        untouched = model(ids).logits
        for hook in ("resid_pre", "resid_post"):
            with op.Add(vector(3)).at(Site(1, hook)).on("all").attach(model):
                assert not torch.allclose(model(ids).logits, untouched, atol=1e-3)
        assert torch.equal(model(ids).logits, untouched)
    for meet in ("attach", "trace", "respond", "fwd_hooks"):  # on a LLaVA every place takes them
        handle = meetings(lens_of(tiny_llava()))[meet](as_plan(op.Add(vector(3)).at(Site(1, "mlp_out"))))
        if meet == "attach":
            handle.detach()


def test_an_edit_is_written_down_changed_and_run_as_a_plan_is(tmp_path):
    lens = lens_of(tiny_llava())
    edit = gated_plan()[0]
    assert sorted(edit.addresses) == sorted(key for key in gated_plan().addresses if key.startswith("turn"))
    assert edit.without("gate").gate is None
    assert edit.without("*.rrs").operators[0].rrs is None
    assert edit.replace(gate=linear_gate(seed=9)).gate.scorer.weight.equal(vector(9))
    with pytest.raises(RMuseError, match="nothing would be left"):
        edit.without(op.SlerpToward)
    edit.save(tmp_path)
    assert all_same(Plan.load(tmp_path), [edit])
    prompts, pictures = ["Who is Oren Tal?", "Where?"], [picture(0), None]
    inputs, logits = lens.encode(prompts, pictures), []
    for running in (edit, as_plan(edit)):
        with running.attach(lens.hf), torch.no_grad():
            logits.append(lens.hf(**inputs).logits)
    assert torch.equal(*logits)
    assert torch.equal(*(one.decide(lens, prompts, pictures).score for one in (edit, as_plan(edit))))
    assert same(edit, as_plan(edit)[0])


def test_the_names_of_sites_are_those_of_transformerlens():
    add = op.Add(vector(1))
    for where in (3, Site(3), "blocks.3.hook_resid_post", [3], [Site(3)]):
        assert same(add.at(where), add.at(layers=[3]))
    edit = add.at(["blocks.2.hook_mlp_out", Site(1, "attn_out"), 2])
    assert edit.sites == [Site(1, "attn_out"), Site(2, "mlp_out"), Site(2)]
    assert edit.layers == [1, 2]
    assert edit.operator_at("blocks.2.hook_mlp_out") is edit.operator_at(2)
    assert edit.operator_at(Site(1)) is None


def test_a_plan_shows_as_an_escaped_table():
    edit = op.Add(vector(1)).at([Site(2, "mlp_out"), 1, 3]).on(positions=[4, 2]).given("image").named("<b>&")
    page = (edit >> op.Add(vector(2)).at(1).when(linear_gate(), per="token"))._repr_html_()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page
    assert "positions 2, 4" in page
    assert "mlp_out of block 2, blocks 1, 3: add" in page
    assert page.count("<tr>") == 3
    assert "where linear discriminant" in page
    assert str(edit).splitlines()[0] == "<b>&: image queries · positions 2, 4"


def test_margins_are_in_the_gates_own_scale_and_columns_have_names():
    lens = lens_of(tiny_llava())
    gate = linear_gate(threshold=1.0).changed(scale=4.0)
    plan = op.Add(vector(1)).at(2).when(gate).named("pictures") >> op.Add(vector(2)).at(2)
    decision = plan.decide(lens, ["Who?", "Where?"])
    assert decision.names == ("pictures", "edit1")
    torch.testing.assert_close(decision.margin[:, 0], (decision.score[:, 0] - 1.0) / 4.0)
    assert torch.equal(decision.margin[:, 0] > 0, decision.fired[:, 0])
    assert decision.margin[:, 1].isnan().all()
    assert torch.equal(decision.rows([1]).score[0, :1], decision.score[1, :1])

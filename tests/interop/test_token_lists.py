"""The files beside tokenizer.json that list tokens: read as transformers does, or refused."""

import json

import pytest

from research.interop import importing
from research.interop.fields import UnsupportedModelError
from research.text import chat_template

SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|end|>",
    "pad_token": "<|pad|>",
}


@pytest.fixture
def files(world):
    """The files of a tokenizer: what its config says too, and other files' contents."""

    def files(more=None, **lists):
        contents = {"tokenizer_config.json": SETTINGS | (more or {})}
        contents |= {f"{name}.json": content for name, content in lists.items()}
        texts = {name: json.dumps(content).encode() for name, content in contents.items()}
        return texts | {"tokenizer.json": (world.folder / "tokenizer.json").read_bytes()}

    return files


def read(files):
    return importing.read_tokenizer(files, "tokenizer.json")


def test_tokens_that_transformers_would_add_are_refused(files):
    number = read(files()).tokens()["a"]
    for those, match in (
        (files(added_tokens={"<new>": 288}), "added_tokens.json lists .*'<new>' as number 288"),
        (files(added_tokens={"a": number}), "lists the token 'a', which is no added token"),
        (files(special_tokens_map={"mask_token": "<new>"}), "'<new>' is the mask_token"),
        (files({"cls_token": "<new>"}), "'<new>' is the cls_token"),
        (files({"additional_special_tokens": ["<new>"]}), "one of additional_special_tokens"),
        (files({"extra_special_tokens": {"image": "<new>"}}), "one of extra_special_tokens"),
    ):
        with pytest.raises(UnsupportedModelError, match=match):
            read(those)
    same = files({"extra_special_tokens": ["<|begin|>"]}, added_tokens={"<|end|>": 2})
    assert read(same).end_id == 2 and read(same).fingerprint() == read(files()).fingerprint()


def test_special_tokens_that_transformers_would_split_are_refused(files):
    """It then reads those of a chat template as plain text."""
    with pytest.raises(UnsupportedModelError, match="says split_special_tokens"):
        read(files({"split_special_tokens": True}))
    assert read(files({"split_special_tokens": False})).end_id == 2


def test_a_tokenizer_that_contradicts_itself_is_refused_at_import(files):
    those = files()
    content = json.loads(those["tokenizer.json"])
    content["model"]["vocab"]["<|begin|>"] = 2
    those["tokenizer.json"] = json.dumps(content).encode()
    with pytest.raises(UnsupportedModelError, match="'<.begin.>' and '<.end.>' the same id, 2"):
        read(those)


@pytest.mark.parametrize(
    ("more", "end"), [({}, "<|pad|>"), ({"added_tokens_decoder": {}}, "<|end|>")]
)
def test_the_map_of_special_tokens_goes_before_the_config_as_in_transformers(
    files, more, end, tmp_path
):
    import transformers

    those = files(more, special_tokens_map={"eos_token": {"content": "<|pad|>"}})
    for name, content in those.items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert read(those).roles["end"] == theirs.eos_token == end


@pytest.mark.parametrize(
    "more",
    [
        {"bos_token": None},
        {"pad_token": None, "bos_token": "<|begin|>", "unk_token": "<|pad|>"},
        {"eos_token": None},
        {"extra_special_tokens": {"image_token": "<|begin|>", "sound": "<|pad|>"}},
        {"image_token": "<|begin|>", "additional_special_tokens": ["<|begin|>"]},
        {"tokenizer_class": "GemmaTokenizer", "bos_token": "<|begin|>", "unk_token": "<|pad|>"},
    ],
)
def test_a_template_sees_the_special_tokens_that_it_sees_in_transformers(files, more, tmp_path):
    import transformers

    config = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}
    those = files(more, config=config)
    for name, content in those.items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    template = "".join(f"{{{{ {name}_token }}}}/" for name in "bos eos pad unk image".split())
    expected = theirs.apply_chat_template([{}], chat_template=template, tokenize=False)
    tokens = read(those).template_tokens
    assert chat_template.render(template, [{}], tokens) == expected
    known = set(read(those).tokens())
    assert tokens == {k: v for k, v in theirs.special_tokens_map.items() if v in known}


def test_a_gpt2_that_names_no_tokens_has_those_of_its_class(files, tmp_path):
    """GPT-2's own config says nothing."""
    import transformers

    content = (files()["tokenizer.json"]).replace(b"<|end|>", b"<|endoftext|>")
    those = {"tokenizer.json": content, "tokenizer_config.json": b"{}"}
    those["config.json"] = json.dumps({"model_type": "gpt2", "eos_token_id": 2}).encode()
    for name, text in those.items():
        (tmp_path / name).write_bytes(text)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert read(those).template_tokens == theirs.special_tokens_map

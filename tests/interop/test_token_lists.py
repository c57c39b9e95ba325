"""The files beside tokenizer.json that list tokens: read as transformers does, or refused."""

import json
import types

import pytest

from research.interop import exporting, importing
from research.interop.fields import UnsupportedModelError
from research.interop.gguf import writer
from research.objectives import Chat
from research.text import chat_template
from research.training import resume

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


def listed(number, content, **flags):
    """An entry of `added_tokens_decoder`."""
    return {"added_tokens_decoder": {str(number): {"content": content, **flags}}}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "more",
    [
        listed(1, "<|begin|>", lstrip=True, special=True, normalized=False),
        listed(1, "<|begin|>", rstrip=True, special=True, normalized=False),
        listed(1, "<|begin|>", single_word=True, special=False, normalized=True),
        listed(2, "<|end|>", special=False),  # a role: special all the same
        listed(69, "c", special=False),  # of the plain vocabulary
        {"unk_token": "c"},
        {"unk_token": {"content": "c", "lstrip": True, "__type": "AddedToken"}},
    ],
)
def test_flags_of_tokens_in_the_config_count_as_in_transformers(files, more, tmp_path):
    import transformers

    those = files(more)
    for name, content in those.items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours, text = read(those), "a <|begin|> b<|begin|>b <|end|> c cc \nabc"
    assert ours.tokens()["c"] == 69
    assert ours.encode(text, special=True) == theirs(text)["input_ids"]
    decoder = theirs.added_tokens_decoder
    assert ours.special_ids == {number for number, token in decoder.items() if token.special}


def altered(files, **parts):
    content = json.loads(files["tokenizer.json"]) | parts
    return files | {"tokenizer.json": json.dumps(content).encode()}


def test_a_tokenizer_that_cuts_at_random_cuts_alike_and_says_so(files):
    model = json.loads(files()["tokenizer.json"])["model"] | {"dropout": 0.5}
    ours, text = read(altered(files(), model=model)), "some words of the corpus " * 9
    assert {tuple(ours.encode(text)) for _ in range(9)} == {tuple(read(files()).encode(text))}
    assert "dropout (0.5): switched off" in ours.notes[0] and not read(files()).notes
    assert ours.fingerprint() == read(files()).fingerprint()
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    ours = read(altered(files(), truncation=truncation))
    assert ours.encode("a b") == read(files()).encode("a b") and "truncation" in ours.notes[0]


def test_what_a_post_processor_puts_around_a_text_is_refused_but_for_the_begin_token(files):
    tokens = {"<|begin|>": 1, "<|end|>": 2, "<|pad|>": 0}
    text, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    special = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in tokens.items()}

    def template(*names):
        single = [{"SpecialToken": {"id": n, "type_id": 0}} if n in tokens else text for n in names]
        pieces = {"single": single, "pair": [*single, other], "special_tokens": special}
        return {"type": "TemplateProcessing", **pieces}

    bos = {"bos_token": "<|begin|>"}
    behind = r"puts <\|end\|> behind a text: every text would end in it"
    bert = {"type": "BertProcessing", "sep": ["<|end|>", 2], "cls": ["<|begin|>", 1]}
    for processor, match in (
        (template("A", "<|end|>"), behind),
        (template("<|begin|>", "A", "<|end|>"), behind),
        (template("<|pad|>", "A"), r"puts <\|pad\|> before a text, and Graft the bos_token alone"),
        (template("<|begin|>", "<|pad|>", "A"), r"puts <\|begin\|> <\|pad\|> before"),
        ({"type": "Sequence", "processors": [template("<|pad|>", "A")]}, "before a text"),
        (bert, behind),
        (bert | {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": False},
         behind),
    ):  # fmt: skip
        with pytest.raises(UnsupportedModelError, match=match):
            read(altered(files(bos), post_processor=processor))
    assert read(altered(files(bos), post_processor=template("<|begin|>", "A"))).opening == [1]
    assert read(altered(files(bos), post_processor=template("A"))).opening == []
    with pytest.raises(UnsupportedModelError, match="name it in tokenizer_config.json"):
        read(altered(files(), post_processor=template("<|begin|>", "A")))


def test_a_space_before_texts_on_which_config_and_tokenizer_differ_is_refused(files):
    spaced = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    spaced = altered(files(), pre_tokenizer=spaced | {"use_regex": True})
    assert read(spaced).opens_with_space and not read(files()).opens_with_space
    for kind in ("GPT2Tokenizer", "PreTrainedTokenizerFast"):
        with pytest.raises(UnsupportedModelError, match="no space before .* says true"):
            read(files({"add_prefix_space": True, "tokenizer_class": kind}))
        assert read(files({"add_prefix_space": False, "tokenizer_class": kind})).end_id == 2
    settings = json.dumps(SETTINGS | {"tokenizer_class": "GPT2TokenizerFast"}).encode()
    with pytest.raises(UnsupportedModelError, match="a space before .* says false"):
        read(spaced | {"tokenizer_config.json": settings})


def test_begin_and_end_tokens_on_which_config_and_tokenizer_differ_are_refused(files):
    """Transformers 4 does as the config says, 5 as the tokenizer does."""
    for name, silent in (("add_bos_token", "PreTrainedTokenizerFast"), ("add_eos_token", None)):
        with pytest.raises(UnsupportedModelError, match=f"adds none, and {name} in .* says true"):
            read(files({name: True, "tokenizer_class": "LlamaTokenizerFast"}))
        for settings in ({name: False, "tokenizer_class": "LlamaTokenizer"}, {name: True}):
            assert read(files({"tokenizer_class": silent} | settings)).end_id == 2


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


@pytest.mark.heavy
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


@pytest.mark.heavy
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


@pytest.mark.heavy
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


def test_exports_let_templates_see_the_tokens_that_they_see_in_the_run(files):
    """Its own files would give others: as of a run from before tokens were recorded."""
    those = files({"bos_token": None, "extra_special_tokens": {"image": "<|begin|>"}})
    tokenizer, tokens = read(those), {"bos_token": "<|end|>", "eos_token": "<|end|>"}
    run = types.SimpleNamespace(tokenizer=tokenizer, sidecar_files=dict(those))
    del run.sidecar_files["tokenizer.json"]
    assert exporting.sidecar_files(run)["tokenizer_config.json"] == those["tokenizer_config.json"]
    tokenizer.template_tokens = tokens
    assert chat_template.find_tokens(exporting.sidecar_files(run)) == tokens


def test_a_gguf_files_template_says_the_tokens_that_llama_cpp_would_not_give_it(files):
    tokenizer = read(files({"bos_token": None, "unk_token": "<|begin|>"}))
    template = "\n{{ bos_token }}{{ unk_token }}{{ eos_token }}"
    theirs = {"bos_token": tokenizer.roles["begin"], "eos_token": "<|end|>"}
    text = writer._with_tokens(template, tokenizer)
    ours = chat_template.render(template, [{}], tokenizer.template_tokens)
    assert chat_template.render(text, [{}], theirs) == ours == "\n<|begin|><|end|>"
    assert writer._with_tokens("{{ eos_token }}", tokenizer) == "{{ eos_token }}"


def test_a_run_whose_template_would_write_other_tokens_than_before_does_not_go_on(files):
    tokenizer = read(files({"bos_token": None}))
    data = types.SimpleNamespace(tokenizer=tokenizer)

    def check(template, metadata):
        data_config = types.SimpleNamespace(objective=Chat(template=template))
        experiment = types.SimpleNamespace(data=data_config)
        resume._check_template_tokens(metadata, experiment, data, "here")

    with pytest.raises(ValueError, match="'<.end.>' as the chat template's bos_token, which is 'n"):
        check("{{ bos_token }}", {})
    check("{{ bos_token }}", {"template_tokens": tokenizer.template_tokens})
    check("{{ eos_token }}", {})

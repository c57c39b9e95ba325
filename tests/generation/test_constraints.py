"""Constraints: what is allowed is what the grammar says, and answers are whole, whatever the
model."""

import argparse
import json
import re

import jsonschema
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from research.commands.generate import read_constraint
from research.config.schema import build
from research.generation.constraints import AnyConstraint
from research.generation.constraints.schema_keywords import check_keywords
from research.generation.constraints.vocabulary import find_vocabulary, token_bytes, unpack
from research.text import tokenizer as tokenizer_module
from research.text.tokenizer import Tokenizer
from tests.helpers.random_answers import random_answer


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    texts = ['{"name": "value", "n": 12} yes no maybe so, éa', "abcd {}[] the text of a schema"]
    return tokenizer_module.train(texts * 20, 330)


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """Unigram with byte fallback; its decoder strips the first space, as Llama's."""
    pieces = ["▁", "▁yes", "yes", "▁no", "no", "y", "e", "s", "n", "o", '{"', '"}', "▁a", "a", "▁▁"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    backend = tokenizers.Tokenizer(
        models.Unigram([(name, -1.0) for name in names], unk_id=0, byte_fallback=True)
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend, begin="<s>", end="</s>", pad="<unk>")


ROWS = {
    "choice": dict(kind="choice", choices=("yes", "no", "maybe so", " no", 'q"\\\n', "é\x01")),
    "regex": dict(kind="regex", pattern='(ab|cd)*e[0-9]{3}|/"é+'),
    "lark": dict(kind="lark", grammar='start: "a" start "b" | "c"'),
    "json": dict(
        kind="json_schema",
        schema={
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "next": {"$ref": "#"},
                "items": {"type": "array", "items": {"enum": ["yes", 1, None]}, "minItems": 2},
            },
            "required": ["name", "items"],
            "additionalProperties": False,
        },
    ),
}


def is_valid(kind: str, text: str) -> bool:
    if kind == "choice":
        return text in ROWS["choice"]["choices"]
    if kind == "regex":
        return re.fullmatch(ROWS["regex"]["pattern"], text) is not None
    if kind == "lark":
        return re.fullmatch("a*cb*", text) is not None and text.count("a") == text.count("b")
    jsonschema.validate(json.loads(text), ROWS["json"]["schema"])
    return True


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
def test_answers_of_a_random_model_are_whole_within_any_budget(request, name, kind):
    tokenizer = request.getfixturevalue(name)
    grammar = build(AnyConstraint, ROWS[kind]).compile(tokenizer)
    rng = np.random.default_rng(0)
    least = grammar.shortest()
    for budget in (least, least + 1, least + 3, 24, 24, 24, 100):
        if budget < least:
            continue
        text, row = random_answer(grammar, budget, rng, tokenizer)
        assert row.is_complete and row.is_finished, text
        assert is_valid(kind, text), text


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
def test_a_mask_has_the_tokens_with_which_some_allowed_text_goes_on(request, name):
    """By hand, over all tokens: of a list of texts, in every place of each."""
    tokenizer = request.getfixturevalue(name)
    texts = ROWS["choice"]["choices"]
    grammar = build(AnyConstraint, ROWS["choice"]).compile(tokenizer)
    tokens = token_bytes(tokenizer)
    plain = [id for id in range(len(tokens)) if tokens[id] and id not in tokenizer.special_ids]
    strips = find_vocabulary(tokenizer, frozenset({tokenizer.end_id})).strips_space
    assert strips == (name == "sentencepiece")

    def read(ids: bytes) -> bytes:
        """What the decoder makes of the first tokens' bytes."""
        return ids[1:] if strips and ids[:1] == b" " else ids

    equal_masks = 0
    for text in texts:
        row, known = grammar.start(200), b""
        whole = (b" " if strips and text[0] == " " else b"") + text.encode()
        while known != whole:
            rest = [each.encode() for each in texts if each.encode().startswith(read(known))]
            allowed = {
                id
                for id in plain
                if any(each.startswith(read(known + tokens[id])) for each in rest)
            }
            is_text = read(known) in rest
            allowed |= {tokenizer.end_id} if is_text else set()
            mask = set(np.flatnonzero(unpack(row.mask())).tolist())
            # where one byte alone may follow, llguidance allows the tokenizer's own token of it
            is_forced = len({each[len(read(known)) :][:1] for each in rest}) == 1
            assert (mask <= allowed and mask) if is_forced else mask == allowed, known
            equal_masks += not is_forced
            id = next(i for i in sorted(mask) if whole.startswith(known + tokens[i]) and tokens[i])
            row.advance(id)
            known += tokens[id]
        assert row.is_complete
    assert equal_masks >= len(texts)


def test_stops_end_an_answer_too_and_masks_have_the_width_of_the_logits(byte_level):
    grammar = build(AnyConstraint, ROWS["lark"]).compile(
        byte_level, stops=(0,), vocabulary_size=1000
    )
    row = grammar.start(8)
    row.advance(byte_level.encode("c")[0])
    assert row.mask().shape == (32,)
    assert set(np.flatnonzero(unpack(row.mask()))) == {0, byte_level.end_id}
    with pytest.raises(ValueError, match="may not come next"):
        row.advance(byte_level.encode("d")[0])


def test_an_answer_that_cannot_end_within_its_tokens_is_refused_with_their_number(byte_level):
    schema = {"type": "array", "items": {"enum": ["the text of a schema"]}, "minItems": 5}
    grammar = build(AnyConstraint, dict(kind="json_schema", schema=schema)).compile(byte_level)
    least = grammar.shortest()
    assert least > len(byte_level.encode(json.dumps(["the text of a schema"] * 5))) // 2
    with pytest.raises(ValueError, match=f"needs {least} tokens.* may have 20"):
        grammar.start(20)
    assert random_answer(grammar, least, np.random.default_rng(0), byte_level)[1].is_complete


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(kind="choice", choices=()), "texts to choose from"),
        (dict(kind="choice", choices=("a", "a")), "twice"),
        (dict(kind="regex", pattern="a("), "unclosed group"),
        (dict(kind="regex", pattern="(?=a)b"), "look-around"),
        (dict(kind="lark", grammar="start: other"), "unknown name"),
        (dict(kind="json_schema", schema={"type": "strin"}), "no JSON Schema: type"),
        (dict(kind="json_schema", schema={"uniqueItems": True}), "uniqueItems"),
        (
            dict(kind="json_schema", schema={"type": "integer", "minimum": 2, "maximum": 1}),
            "greater",
        ),
        (dict(kind="json_schema", schema={"typ": "string"}), "'typ' is no keyword.*mean type"),
        (
            dict(
                kind="json_schema",
                schema={"properties": {"typ": {"type": "string", "maxLenght": 3}}},
            ),
            "'maxLenght' is no keyword.*mean maxLength",
        ),
        (
            dict(kind="json_schema", schema={"items": {"anyOf": [{"nullable": True}]}}),
            "'nullable' is no keyword",
        ),
        (dict(kind="grammar"), "there is no 'grammar'"),
    ],
)
def test_what_is_no_constraint_is_refused_in_the_config(config, message):
    with pytest.raises(ValueError, match=message):
        build(AnyConstraint, config)


def test_what_schemas_say_beside_values_is_let_pass():
    """Titles, names of properties that look like keywords, and what is anybody's own."""
    beside = {"title": "t", "description": "d", "default": 1, "examples": [1], "x-order": 1}
    properties = {"typ": {"type": "string"} | beside, "nullable": {"$ref": "#/$defs/tpye"}}
    constants = {"const": {"typ": 1}}
    own = {"$schema": "x", "$id": "y", "$defs": {"tpye": constants}}
    check_keywords({"properties": properties} | own)


def test_files_of_constraints_are_named(tmp_path):
    grammar, schema = tmp_path / "g.lark", tmp_path / "s.json"
    grammar.write_bytes(b'start: "\xe9"')
    schema.write_bytes(b'{"maximum": NaN}')
    for flag, path in (("grammar", grammar), ("schema", schema)):
        values = dict.fromkeys(("schema", "grammar", "regex", "choices")) | {flag: str(path)}
        with pytest.raises(ValueError, match=f"{path.name}: no"):
            read_constraint(argparse.Namespace(**values))


def test_what_allows_nothing_is_refused(byte_level):
    constraint = build(AnyConstraint, dict(kind="lark", grammar='start: "a" start'))
    with pytest.raises(ValueError, match="no answer that ends was found"):
        constraint.compile(byte_level)


def test_a_row_that_no_token_is_left_for_fails_and_is_not_whole(byte_level):
    content = json.loads(byte_level.to_json())
    del content["model"]["vocab"]["Ą"]  # the byte 4; SmolLM2's vocabulary has no token for it
    tokenizer = tokenizer_module.from_json(json.dumps(content), "here")
    grammar = build(AnyConstraint, dict(kind="regex", pattern="a\\x04b|b")).compile(tokenizer)
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    row, other = grammar.start(100), grammar.start(100)
    row.advance(a)
    with pytest.raises(ValueError, match="can follow: the tokenizer has no token"):
        row.mask()
    assert not row.is_complete
    other.advance(b)
    assert other.is_complete
    with pytest.raises(ValueError, match="no answer that ends was found"):
        build(AnyConstraint, dict(kind="regex", pattern="a\\x04b")).compile(tokenizer)


def test_a_tokenizer_without_all_bytes_is_refused_by_name(byte_level):
    backend = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "yes": 3}))
    backend.add_special_tokens(["<s>", "</s>", "<unk>"])
    tokenizer = Tokenizer(backend, begin="<s>", end="</s>", pad="<unk>")
    constraint = build(AnyConstraint, dict(kind="choice", choices=("yes",)))
    with pytest.raises(ValueError, match=r"decoder \(none\)"):
        constraint.compile(tokenizer)
    backend.decoder = decoders.Metaspace()
    with pytest.raises(ValueError, match="no token for 160 bytes"):
        constraint.compile(Tokenizer(backend, begin="<s>", end="</s>", pad="<unk>"))

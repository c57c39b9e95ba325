"""Random schemas, expressions, choices and grammars, answered by a model that knows nothing."""

import json
import os
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from research.generation.constraints.choice import ChoiceConstraint
from research.generation.constraints.json_schema import SchemaConstraint
from research.generation.constraints.lark import LarkConstraint
from research.generation.constraints.regex import RegexConstraint
from research.text import tokenizer as tokenizer_module
from research.text.tokenizer import Tokenizer
from tests.helpers.random_answers import random_answer

# random inputs of each kind in the heavy tests, and schemas, of which there are most kinds
COUNT = int(os.environ.get("GRAFT_FUZZ", "200"))
SCHEMAS = max(COUNT, 2000)
NAMES = ["name", "a", "b", "long name", 'q"uote', "é", "items", "0", "$x", ""]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [
        '{"name": "value", "items": [1, 2], "long name": null}',
        "true false yes no maybe é 世界",
    ]
    return tokenizer_module.train(texts * 20, 400)


def schema(rng: random.Random, depth: int = 0) -> Any:
    """A schema of what llguidance knows, at most four deep."""
    if depth < 3 and rng.random() < 0.65:
        return _nested(
            rng, depth + 1, rng.choice(["object"] * 5 + ["array"] * 3 + ["anyOf", "map"])
        )
    kind = rng.choice(["string", "text", "number", "integer", "boolean", "null", "enum", "any"])
    if kind == "string":
        least = rng.randrange(4)
        sizes = {"minLength": least, "maxLength": least + rng.randrange(6)}
        return {"type": "string", **(sizes if rng.random() < 0.5 else {})}
    if kind == "text":
        patterns = ["^[a-c]{2,5}$", "^(yes|no)$", "[0-9]+", "^x?y*$", "^[A-Z][a-z]*( [a-z]+)*$"]
        if rng.random() < 0.3:
            return {"type": "string", "format": rng.choice(["date", "time", "uuid", "ipv4"])}
        return {"type": "string", "pattern": rng.choice(patterns)}
    if kind in ("number", "integer"):
        least = rng.randrange(-50, 50)
        bounds = {"minimum": least, "maximum": least + rng.randrange(200)}
        if rng.random() < 0.2:
            bounds = {"exclusiveMinimum": least, "exclusiveMaximum": least + 10}
        return {"type": kind, **(bounds if rng.random() < 0.6 else {})}
    if kind == "enum":
        values = [1, "a", None, True, "a longer text", [1, "b"], {"a": 2}, ""]
        return rng.choice([{"enum": rng.sample(values, 3)}, {"const": rng.choice(values)}])
    if kind == "any":
        return rng.choice([{}, {"type": rng.sample(["string", "integer", "null", "boolean"], 2)}])
    return {"type": kind}


def _nested(rng: random.Random, depth: int, kind: str) -> Any:
    if kind == "array" and rng.random() < 0.3:
        first = [schema(rng, depth) for _ in range(2)]
        return {"type": "array", "prefixItems": first, "items": False, "minItems": 2}
    if kind == "array":
        least = rng.randrange(3)
        sizes = {"minItems": least, "maxItems": least + rng.randrange(4)}
        items = {"items": schema(rng, depth)}
        return {"type": "array", **items, **(sizes if rng.random() < 0.6 else {})}
    if kind == "anyOf":
        return {"anyOf": [schema(rng, depth) for _ in range(rng.randrange(1, 4))]}
    if kind == "map":
        return {"type": "object", "additionalProperties": schema(rng, depth)}
    names = rng.sample(NAMES, rng.randrange(1, 5))
    properties = {name: schema(rng, depth) for name in names}
    content = {"type": "object", "properties": properties}
    content["required"] = rng.sample(names, rng.randrange(len(names) + 1))
    if depth == 1 and rng.random() < 0.2:
        properties["more"] = {"$ref": "#"}
    if rng.random() < 0.7:
        content["additionalProperties"] = False
    return content


def check_schemas(tokenizer: Tokenizer, seeds: range) -> None:
    rng, refused = np.random.default_rng(seeds.start), 0
    for seed in seeds:
        content = schema(random.Random(seed))
        try:
            config = SchemaConstraint(content, compact=seed % 3 == 0)
        except ValueError:
            refused += 1
            continue
        grammar = config.compile(tokenizer)
        least = grammar.shortest()
        for budget in (least, least + seed % 20, least + 60):
            text, row = random_answer(grammar, budget, rng, tokenizer)
            assert row.is_complete, (seed, budget, content, text)
            try:
                jsonschema.validate(json.loads(text), content, jsonschema.Draft202012Validator)
            except (ValueError, jsonschema.ValidationError) as error:
                raise AssertionError((seed, budget, content, text)) from error
    assert refused <= len(seeds) // 50


def test_answers_are_of_their_random_schemas(tokenizer):
    check_schemas(tokenizer, range(40))


@pytest.mark.heavy
def test_answers_are_of_their_many_random_schemas(tokenizer):
    check_schemas(tokenizer, range(SCHEMAS))


def expression(rng: random.Random, depth: int = 0) -> str:
    """A regular expression that Python and llguidance read alike."""
    kinds = ["text", "class", "not"] + (["join", "or", "repeat", "group"] * 2 if depth < 4 else [])
    kind = rng.choice(kinds)
    if kind == "text":
        return re.escape("".join(rng.choices('ab"é世 /\\-', k=rng.randrange(1, 4))))
    if kind == "class":
        return rng.choice(["[a-c]", "[0-9]", "[éa]", "[x-z_]"])
    if kind == "not":
        return "[^a-z\\n]"
    if kind == "join":
        return expression(rng, depth + 1) + expression(rng, depth + 1)
    if kind == "or":
        return f"({expression(rng, depth + 1)}|{expression(rng, depth + 1)})"
    if kind == "repeat":
        suffix = rng.choice(["*", "+", "?", "{2}", "{1,3}", "{2,}"])
        return f"({expression(rng, depth + 1)}){suffix}"
    return f"({expression(rng, depth + 1)})"


@pytest.mark.parametrize(
    "count", [30, pytest.param(COUNT, marks=pytest.mark.heavy)], ids=["30", "many"]
)
def test_answers_match_their_random_expressions(tokenizer, count):
    rng, refused = np.random.default_rng(0), 0
    for seed in range(count):
        pattern = expression(random.Random(seed))
        try:
            grammar = RegexConstraint(pattern).compile(tokenizer)
        except ValueError as error:  # an end that only one way of hundreds leads to
            assert "no answer that ends was found" in str(error)
            refused += 1
            continue
        least = grammar.shortest()
        for budget in (least, least + 7, least + 50):
            text, row = random_answer(grammar, budget, rng, tokenizer)
            assert row.is_complete, (seed, budget, pattern, text)
            assert re.fullmatch(pattern, text), (seed, budget, pattern, text)
    assert refused <= count // 100


@pytest.mark.parametrize(
    "count", [30, pytest.param(COUNT, marks=pytest.mark.heavy)], ids=["30", "many"]
)
def test_answers_are_of_their_random_choices(tokenizer, count):
    rng = np.random.default_rng(0)
    for seed in range(count):
        source = random.Random(seed)
        characters = 'abAB01 \n\t"\\/{}<|>é世🙂\x00'
        texts = {"".join(source.choices(characters, k=source.randrange(1, 12))) for _ in range(9)}
        grammar = ChoiceConstraint(tuple(sorted(texts))).compile(tokenizer)
        least = grammar.shortest()
        assert least == 1 + min(len(tokenizer.encode(text)) for text in texts)
        for budget in (least, least + 2, 60):
            text, row = random_answer(grammar, budget, rng, tokenizer)
            assert row.is_complete and text in texts, (seed, budget, text)


@pytest.mark.parametrize(
    "count", [10, pytest.param(COUNT, marks=pytest.mark.heavy)], ids=["10", "many"]
)
def test_answers_are_of_their_random_brackets(tokenizer, count):
    """Lark: what no regular expression says, brackets that close in their order."""
    rng = np.random.default_rng(0)
    for seed in range(count):
        pairs = random.Random(seed).sample(["()", "[]", "{}", "<>", "éa", "xy"], 3)
        rules = " | ".join(f'"{first}" start "{last}" start' for first, last in pairs)
        grammar = LarkConstraint(f'start: {rules} | "."').compile(tokenizer)
        for budget in (grammar.shortest(), 6, 40):
            text, row = random_answer(grammar, budget, rng, tokenizer)
            assert row.is_complete, (seed, budget, text)
            value, previous = text, None
            while value != previous:
                previous = value
                for first, last in pairs:
                    value = value.replace(f"{first}.{last}.", ".")
            assert value == ".", (seed, budget, text)

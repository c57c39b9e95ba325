"""A tokenizer.json that says two things is refused by name."""

import copy
import json

import pytest

from research.text import tokenizer as tokenizer_lib
from research.text import tokenizer_checks

TOKENIZER = tokenizer_lib.train(["some words, and some more"], 270)
CONTENT = json.loads(TOKENIZER.to_json())


def change(**changes):
    """The file with another vocabulary, or other added tokens."""
    content = copy.deepcopy(CONTENT)
    content["model"]["vocab"] |= changes.get("vocab", {})
    content["added_tokens"][0] |= changes.get("first", {})
    content["added_tokens"] += changes.get("added", [])
    return json.dumps(content)


def again(**changes):
    return CONTENT["added_tokens"][0] | changes


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (change(vocab={"<|begin|>": 2}), "gives '<.begin.>' and '<.end.>' the same id, 2"),
        (change(first={"id": 3}), "added_tokens gives '<.pad.>' the id 3, and it is opened as 0"),
        (change(added=[again(content="<new>", id=5)]), "'<new>' the id 5, and it is opened as 2"),
        (change(added=[again(content="<new>", id=999)]), "'<new>' the id 999"),
        (change(added=[again(lstrip=True)]), "added_tokens lists '<.pad.>' twice, in two ways"),
        (
            change().replace('"normalizer":', '"normalizer": null, "normalizer":'),
            "'normalizer' app",
        ),
        (change().replace('"vocab": {', '"vocab": {"a": 9, '), "the key 'a' appears twice"),
    ],
)
def test_a_file_that_says_two_things_is_refused_by_name(text, match, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=f"tokenizer.json: .*{match}"):
        tokenizer_lib.load(tmp_path / "tokenizer.json")


def test_a_token_that_a_list_of_pieces_has_twice_is_refused():
    model = {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0], ["a", -3.0]]}
    with pytest.raises(ValueError, match="the vocabulary has 'a' twice, as 0 and 2"):
        tokenizer_checks.check(json.dumps({"model": model}), {}, "here")


def test_a_file_that_says_one_thing_is_read(tmp_path):
    (tmp_path / "tokenizer.json").write_text(change(added=[again()]))
    assert tokenizer_lib.load(tmp_path / "tokenizer.json").tokens() == TOKENIZER.tokens()

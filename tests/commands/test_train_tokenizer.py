"""A tokenizer is trained on what the objective reads."""

import json

import pytest

from research.commands import train_tokenizer
from research.data.sources import JsonlConfig, open_source
from research.objectives import Causal, Chat, Supervised

TALK = [{"role": "user", "content": "some"}, {"role": "assistant", "content": "words"}]


@pytest.mark.parametrize(
    ("objective", "record", "texts"),
    [
        (Causal(), {"text": "some words", "id": "x"}, ["some words"]),
        (Supervised(), {"prompt": "some", "completion": "words"}, ["words", "some"]),
        (Supervised(), {"instruction": "some", "output": "words"}, ["words", "some"]),
        (Chat(), {"messages": TALK}, ["some", "words"]),
        (Chat(), {"prompt": "some", "completion": "words"}, ["some", "words"]),
    ],
)
def test_what_the_objective_reads_is_sampled(tmp_path, objective, record, texts):
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(record))
    source = open_source(JsonlConfig("a", str(tmp_path / "a.jsonl")))
    assert list(train_tokenizer.sample(source, objective, 1000)) == texts * 2

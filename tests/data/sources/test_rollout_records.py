"""Rollouts as records: what is none is refused."""

import json

import pytest

from research.data.sources import JsonlConfig, open_source

ROLLOUT = {"prompt": "a", "answer": "b", "prompt_ids": [1], "answer_ids": [2, 3], "advantage": 0.5}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"answer_ids": []}, "'answer_ids' must be token ids, at least one"),
        ({"prompt_ids": [1, -2]}, "'prompt_ids' must be token ids"),
        ({"prompt_ids": [True]}, "'prompt_ids' must be token ids"),
        ({"advantage": "high"}, "'advantage' must be a finite number"),
    ],
)
def test_a_rollout_that_is_none_is_refused(tmp_path, change, message):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROLLOUT | change) + "\n")
    with pytest.raises(ValueError, match=message):
        open_source(JsonlConfig("a", str(path)))[0]

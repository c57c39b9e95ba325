"""A card says what the run knows, and says what nobody stated."""

import dataclasses
import shutil

import pytest

from research.checkpoints import runs
from research.interop import model_card
from research.methods import LoRA
from research.training.loop import train


def bits(name):
    """The results of held-out text of this name."""
    metrics = {name: {"value": 2.25, "low": 2.1, "high": 2.4, "n": 3}}
    return {"tasks": {"bits": {"settings": {"kind": "text"}, "metrics": metrics}}}


@pytest.mark.heavy
def test_a_tunes_card_has_base_data_method_cost_and_use(world, tmp_path):
    train(world.tuning(3, method=LoRA(rank=2)), tmp_path / "tuned")
    right = {"right": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 12}}
    law = {"settings": {"kind": "choice"}, "metrics": right}
    evaluation = {"tasks": {"law": law, **bits("prose")["tasks"]}}
    text = model_card.write(runs.open_run(tmp_path / "tuned"), "peft", "tuned", evaluation)
    for part in (
        "# tuned",
        "Method: lora (targets",
        "rank 2, alpha 32.0",
        "- none: trained from random weights",
        "- questions (jsonl, train), licence: not stated",
        "objective: supervised {'template': 'Q: {prompt}",
        "3 of 3 steps of 8 x 32 tokens, adamw, rate 0.01 (constant), seed 0",
        "- trained: ",
        "FLOPs",
        "law, right: 50.0% [40.0%, 60.0%] of 12",
        "bits, prose: 2.250 [2.100, 2.400] of 3",
        "PeftModel.from_pretrained",
    ):
        assert part in text, (part, text)
    assert "---" not in text  # no licence is stated, so none is claimed


@pytest.mark.heavy
def test_no_name_sends_a_control_code_or_begins_a_line(world, tmp_path):
    name = "evil \x1b[31m`|*\n# Model"
    shutil.copytree(world.base, tmp_path / name)
    origin = {"source": name, "family": "llama", "dtype": "float32", "licence": "mit\n---\n<b>"}
    run = dataclasses.replace(runs.open_run(tmp_path / name), origin=origin)
    for form in ("hf", "gguf"):
        text = model_card.write(run, form, "a```b", bits(name))
        assert "\x1b" not in text and "\n# Model" not in text and text.count("\n---\n") == 1
        assert r'license: "mit\n---\n<b>"' in text
        assert r"# evil \\x1b\[31m\`\|\*\\n\# Model" in text
        assert "\n````sh\n" in text  # a block that the name's backticks do not end

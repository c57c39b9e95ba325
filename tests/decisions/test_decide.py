"""A decision from the command to its page, on a tiny base: nothing is asked twice."""

import json

import pytest

from research.commands import decide
from research.config import schema
from research.decisions import asking, page
from research.decisions.decision import Settings
from research.decisions.decision import decide as make_decision
from research.decisions.rungs import constrained, zero_shot
from research.evaluation.tasks import Evaluation
from research.training.loop import train
from tests.decisions.worlds import BASE, open_colours, write_colours
from tests.helpers.html_page import Page


@pytest.fixture(scope="module")
def base(world):
    """A base whose window holds worked examples."""
    folder = world.folder / "long"
    if not folder.exists():
        train(world.experiment(2, data=world.data(sequence_length=256)), folder)
    return folder


def test_what_was_measured_stands_on_the_page_and_in_the_file(tmp_path, world):
    problem = open_colours(tmp_path, world)
    lines = []
    rungs = (zero_shot.RUNG, constrained.RUNG)
    decision = make_decision(
        problem,
        [BASE],
        Settings(target=0.9),
        tmp_path / "tuning",
        cache=tmp_path / "answers",
        say=lines.append,
        rungs=rungs,
    )
    assert lines[0] == "majority: 25.0 [14.9, 38.8] % of 48"
    content = json.loads(json.dumps(decision.to_dict()))
    ways = {way["name"]: way for way in content["ways"]}
    assert ways["TF-IDF + linear"]["quality"]["value"] == 1
    assert content["rows"] == {"labels": 48, "validation": 48, "test": 32, "texts": 0}
    # a plain model meets the target, so that no language model is asked
    assert content["advice"]["meets_target"] and "zero-shot" not in ways
    assert content["left_out"]["zero-shot"] == "the target is met by nearest neighbour"
    assert [test["quality"]["n"] for test in content["test"]] == [32, 32]
    page.write(tmp_path / "page.html", decision)
    markup = (tmp_path / "page.html").read_text()
    assert f"Take {content['advice']['way']}" in Page(markup).text
    page.write(tmp_path / "again.html", decision)
    assert (tmp_path / "again.html").read_text() == markup


def test_wrong_flags_and_runs_are_named_before_anything_is_read(tmp_path, capsys):
    for line, error in {
        "--base a": "say what is asked: --task NAME, --task FILE.jsonl, or --config FILE",
        "--task law --config b --base a": "say what is asked",
        "--task law --base a --labels-cost 1": "--labels-cost is in the money of --price-per-hour",
        "--task law --base a --choices a,b": "and --choices are of --task FILE.jsonl",
        "--task law --base a --tune lora": "'lora' is none of prompt tuning, LoRA",
        "--task law --base a --target 90": "a share such as 0.9, not 90",
        "--task law --base a --budget-hours 0": "a positive number, not 0",
        "--task law --base a --test-rows 0": "a number from 1 on, not 0",
    }.items():
        with pytest.raises(SystemExit):
            decide.main(line.split())
        assert error in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no task 'laws'; did you mean law"):
        decide.main(["--task", "laws", "--base", "a"])


@pytest.mark.heavy
def test_a_decision_goes_from_rows_to_a_page_and_asks_nothing_twice(
    tmp_path, world, base, monkeypatch, capsys
):
    content = schema.to_dict(Evaluation(tasks={"colours": write_colours(tmp_path)}))
    config = tmp_path / "config.py"
    config.write_text(f"def get_config():\n    return {content!r}\n")
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "out"
    line = ["--config", str(config), "--base", str(base), "--folder", str(folder)]
    line += ["--validation-rows", "32", "--test-rows", "16", "--tune", "none"]
    decide.main([*line, "--dry-run"])
    printed = capsys.readouterr().out
    assert "labels first" in printed and "hours of 1: screening drops" in printed
    assert not (folder / "decision.json").exists()
    decide.main(line)
    printed = capsys.readouterr().out
    first = json.loads((folder / "decision.json").read_text())
    names = {way["name"]: way for way in first["ways"]}
    assert {"zero-shot", "labels last", "4 examples", "8 nearest examples"} <= {
        name.rpartition(", ")[2] for name in names
    }
    assert names["zero-shot"]["request"]["flops"] > 0 and "constraints" in first["left_out"]
    assert f"Take {first['advice']['way']}" in printed
    with monkeypatch.context() as patched:
        patched.setattr(asking, "loaded_model", lambda *_: pytest.fail("the model was loaded"))
        decide.main(line)
    second = json.loads((folder / "decision.json").read_text())
    assert [way["scores"] for way in second["ways"]] == [way["scores"] for way in first["ways"]]
    assert second["used_hours"] == first["used_hours"]

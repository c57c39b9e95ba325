"""Answers are kept as they are made: nothing is asked twice, and a kill loses none of them."""

import dataclasses
import json
import shutil
import signal
import subprocess
import time

import pytest

from research.checkpoints import runs
from research.config import schema
from research.evaluation import generation_task, report
from research.evaluation.answer_cache import key_of
from research.evaluation.choice_task import ChoiceTask
from research.evaluation.generation_task import GenerationTask
from research.evaluation.multiple_choice import MultipleChoice
from research.evaluation.scorers.exact_match import ExactMatch
from research.evaluation.scorers.token_f1 import TokenF1
from research.evaluation.tasks import Evaluation
from research.generation import decode
from research.methods import LoRA
from research.objectives import Supervised
from research.sharding import MeshConfig
from tests.helpers import tiny_run
from tests.helpers.tiny_run import COLOURS, world

ASK = Supervised(template="Q: {prompt}\nA: ", answer_tokens=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return world(tmp_path_factory.getbasetemp())


def words(place, **settings):
    source = place.questions().sources[0]
    defaults = {"split": "heldout", "scorers": (ExactMatch(), TokenF1()), "max_tokens": 4}
    return GenerationTask(source, **defaults | {"batch_size": 5} | settings)


def options(place, **settings):
    source = place.questions().sources[0]
    defaults = {"split": "heldout", "labels": COLOURS, "reference": "completion"}
    return MultipleChoice(source, **defaults | {"batch_size": 8, "objective": ASK} | settings)


def labels(place, **settings):
    source = place.questions().sources[0]
    return ChoiceTask(source, ASK, **{"split": "heldout", "batch_size": 8} | settings)


def content(result):
    """Everything that is written of a result, but seconds."""
    return json.dumps({**result.to_dict(), "seconds": 0})


def ask(place, cache, task, **settings):
    run = runs.open_run(place.base)
    evaluation = Evaluation(tasks={"a": task})
    return report.evaluate_run(run, evaluation, cache=cache, **settings).tasks["a"]


@pytest.mark.parametrize("kind", [words, options, labels])
def test_asking_again_asks_nothing_and_says_the_same(place, tmp_path, monkeypatch, kind):
    settings = {"unconditional": "N/A"} if kind is options else {}
    first = ask(place, tmp_path, kind(place, **settings))
    assert first.earlier == 0
    with monkeypatch.context() as patched:
        patched.setattr(report, "loaded_model", lambda *_: pytest.fail("the model was loaded"))
        again = ask(place, tmp_path, kind(place, **settings))
    assert again.earlier == 12 and content(again) == content(first)
    assert again.seconds == first.seconds > 0  # what the answers took
    assert ask(place, tmp_path, kind(place, **settings), is_fresh=True).earlier == 0
    # another group is another interval, not another question
    assert ask(place, tmp_path, kind(place, **settings, group="prompt")).earlier == 12
    # as it is without a cache
    assert content(ask(place, None, kind(place, **settings))) == content(first)


def test_what_answers_cost_is_counted_by_hand(place):
    """The tiny model has matrices of 2 x (4 x 16 x 16 + 2 or 3 x 16 x 32) parameters and 288 tokens
    of width 16; attention takes 4 x 16 a token, key and layer."""
    model = runs.open_run(place.base).model
    matrices = 2 * (4 * 16 * 16 + (2 + model.gated) * 16 * 32)
    parameters = matrices + (1 if model.tie_embeddings else 2) * 288 * 16 + 5 * 16

    def text(n):
        return 2 * matrices * n + 2 * 4 * 16 * n * (n + 1) / 2

    generation = ask(place, None, words(place))
    counts = [each.new_tokens + (not each.is_cut) for each in generation.answers]
    flops = [
        text(a.prompt_tokens + n - 1) + 2 * 288 * 16 * n
        for a, n in zip(generation.answers, counts, strict=True)
    ]
    assert generation.cost.flops == sum(flops) and generation.cost.weight_bytes == 4 * parameters
    longest = max(each.prompt_tokens for each in generation.answers) + 4
    # keys and values of two layers in float32, and a segment and a position, of 5 rows
    assert generation.cost.cache_bytes == 5 * longest * (2 * 2 * 16 * 4 + 2 * 4) + 4
    choice = ask(place, None, options(place))
    lengths = [len(runs.open_run(place.base).tokenizer.encode(label)) for label in COLOURS]
    flops = 0
    for shared in (each.prompt_tokens - 1 for each in choice.answers):
        flops += text(shared) + sum(text(shared + n) - text(shared) for n in lengths)
        flops += 2 * 288 * 16 * sum(lengths)
    assert (choice.cost.flops, choice.cost.cache_bytes) == (flops, 0)


def test_what_was_interrupted_goes_on_with_the_questions_that_are_missing(
    place, tmp_path, monkeypatch
):
    batch_sizes, complete = [], decode.complete

    def interrupted(model, requests, rows, **settings):
        batch_sizes.append(len(requests))
        if len(batch_sizes) == 3:
            raise KeyboardInterrupt
        return complete(model, requests, rows, **settings)

    monkeypatch.setattr(decode, "complete", interrupted)
    monkeypatch.setattr(generation_task, "BATCHES", 1)
    with pytest.raises(KeyboardInterrupt):
        ask(place, tmp_path / "a", words(place))
    result = ask(place, tmp_path / "a", words(place))
    assert len(batch_sizes) == 4 and result.earlier == 10  # of three batches the last alone
    assert content(result) == content(ask(place, tmp_path / "b", words(place)))


def test_other_questions_models_rules_and_sampling_are_asked(place, tmp_path, monkeypatch):
    run = runs.open_run(place.base)
    other = tiny_run.adapter(place.base, LoRA(rank=2), tmp_path / "lora")

    def key(the_run, task, cache_dtype=None, **mesh):
        evaluation = Evaluation(mesh=MeshConfig(**mesh), cache_dtype=cache_dtype)
        parts = (the_run, None, evaluation, task, task.read())
        return json.dumps(key_of(*parts), default=repr)

    task = words(place)
    keys = [
        key(run, task),
        key(runs.open_run(other), task),
        key(run, dataclasses.replace(task, max_questions=3)),
        key(run, dataclasses.replace(task, split="train")),
        key(run, dataclasses.replace(task, max_tokens=5)),
        key(run, dataclasses.replace(task, objective=ASK)),
        key(run, dataclasses.replace(task, scorers=(ExactMatch(comparison="exact"), TokenF1()))),
        key(run, dataclasses.replace(task, sampling=decode.Sampling(temperature=1.0))),
        key(run, task, data=1, fsdp=8),
        key(run, task, cache_dtype="int8"),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(ExactMatch, "machine_key", "another verifier")
        keys.append(key(run, task))
    assert len(set(keys)) == len(keys)
    assert key(runs.open_run(place.base), words(place)) == keys[0]


def test_a_file_that_was_changed_is_no_answer(place, tmp_path):
    ask(place, tmp_path, words(place))
    (path, *_) = sorted(tmp_path.glob("*/0*.json"))
    path.write_text(path.read_text().replace('"exact_match": 0.0', '"exact_match": 1.0'))
    with pytest.raises(ValueError, match=r"answers of a .*0\.json is not what .*--fresh asks"):
        ask(place, tmp_path, words(place))
    assert ask(place, tmp_path, words(place), is_fresh=True).earlier == 0


@pytest.mark.parametrize("where", ["another task's", "another number"])
def test_a_file_in_another_place_is_no_answer(place, tmp_path, where):
    ask(place, tmp_path, words(place, batch_size=8))
    (mine,) = (path.parent for path in tmp_path.glob("*/about.json"))
    first = sorted(mine.glob("0*.json"))[0]
    if where == "another number":
        shutil.copy(first, mine / "00000099.json")
    else:
        ask(place, tmp_path, words(place, batch_size=8, max_tokens=2))
        (theirs,) = {path.parent for path in tmp_path.glob("*/about.json")} - {mine}
        shutil.copy(theirs / first.name, first)
    with pytest.raises(ValueError, match=r"answers of a .* is not what was written.*--fresh asks"):
        ask(place, tmp_path, words(place, batch_size=8))


@pytest.mark.heavy
def test_a_killed_evaluation_ends_in_the_result_of_one_that_was_not(place, tmp_path, monkeypatch):
    config = tmp_path / "config.py"
    # each question is a part of its own: as many answers as a part holds
    samples = {"samples": generation_task.BATCHES, "batch_size": 1, "max_tokens": 64}
    task = words(place, sampling=decode.Sampling(temperature=1.0), **samples)
    evaluation = Evaluation(tasks={"a": task})
    config.write_text(f"def get_config():\n    return {schema.to_dict(evaluation)!r}\n")

    def start(cache, out):
        monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / cache))
        line = ("evaluate", "--config", config, "--run", place.base, "--out", tmp_path / out)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(tiny_run.command(*line), cwd=tiny_run.ROOT, **pipes)

    def finished():
        return len([*(tmp_path / "killed" / "answers").glob("*/0*.json")])

    def result(out):
        content = json.loads((tmp_path / out).read_text())
        content["tasks"]["a"]["seconds"] = 0
        return json.dumps(content)

    counts = []
    for _ in range(2):
        before, process = finished(), start("killed", "killed.json")
        tiny_run.wait_for(process, lambda least=before: finished() > least)
        time.sleep(0.01)
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        counts.append(finished())
    assert 0 < counts[0] < counts[1] < 12  # every kill struck one that was not done
    last = start("killed", "killed.json")
    printed = last.communicate()[0]
    assert last.returncode == 0 and f"{counts[-1]} answers from an earlier run" in printed
    whole = start("whole", "whole.json")
    assert "earlier run" not in whole.communicate()[0]
    assert result("killed.json") == result("whole.json")
    # asked twice at once, after a part: neither harms the other
    for path in sorted((tmp_path / "whole" / "answers").glob("*/0*.json"))[3:]:
        path.unlink()
    for process, out in [(start("whole", out), out) for out in ("one.json", "other.json")]:
        printed = process.communicate()[0]
        assert process.returncode == 0, printed
        assert result(out) == result("whole.json")

"""A task with retrieval: what the model reads, what a result says, and what it is set beside."""

import dataclasses
import json

import pytest

from research.checkpoints import runs
from research.commands import evaluate, retrieve
from research.config import schema
from research.data.sources import JsonlConfig
from research.evaluation import comparison
from research.evaluation.generation_task import GenerationTask
from research.evaluation.multiple_choice import MultipleChoice
from research.evaluation.report import evaluate_run
from research.evaluation.scorers.exact_match import ExactMatch
from research.evaluation.tasks import Evaluation
from research.generation import decode
from research.objectives import Supervised
from research.retrieval.bm25 import Bm25
from research.retrieval.dense import Dense
from research.retrieval.retrieve import content_key
from tests.helpers.tiny_run import COLOURS

FACTS = {"north": "red", "south": "green", "east": "blue", "west": "white"}


@pytest.fixture(scope="module")
def notes(world):
    """Four facts, a question on each, and two whose facts share no word with them."""
    facts = [{"text": f"the {side} roof is {c}.", "id": side} for side, c in FACTS.items()]
    questions = [
        {"prompt": f"colour of the {side} roof", "completion": colour, "document_id": side}
        for side, colour in FACTS.items()
    ]
    questions += [
        {"prompt": "colour?", "completion": c, "document_id": "east"} for c in COLOURS[:2]
    ]
    for name, records in (("facts-train", facts), ("asked-test", questions)):
        path = world.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return world.folder


def task(notes, **retrieval):
    settings = {"passages": 2, "measure_at": (1, 2), "relevant": "document_id"} | retrieval
    kind = settings.pop("cls", Bm25)
    source = JsonlConfig("facts", str(notes / "facts-{split}.jsonl"))
    return GenerationTask(
        JsonlConfig("asked", str(notes / "asked-{split}.jsonl")),
        (ExactMatch(),),
        objective=Supervised(template="Q: {prompt}\nA: "),
        max_tokens=4,
        batch_size=8,
        retrieval=kind(source, **settings),
    )


def ask(world, the_task):
    return evaluate_run(runs.open_run(world.base), Evaluation(tasks={"a": the_task})).tasks["a"]


def test_prompts_hold_the_passages_that_a_result_names(world, notes, monkeypatch):
    prompts, complete = [], decode.complete

    def record(model, requests, rows, **settings):
        prompts.extend(request.prompt for request in requests)
        return complete(model, requests, rows, **settings)

    monkeypatch.setattr(decode, "complete", record)
    result = ask(world, task(notes))
    tokenizer = runs.open_run(world.base).tokenizer
    texts = {tokenizer.decode(ids) for ids in prompts}
    north, *_, nothing, _ = result.answers
    assert north.passages[0] == "north" and len(north.passages) == 2
    second = north.passages[1]
    assert (
        "Q: [1] north\nthe north roof is red.\n\n"
        f"[2] {second}\nthe {second} roof is {FACTS[second]}.\n\ncolour of the north roof\nA: "
    ) in texts
    assert nothing.passages == [] and "Q: colour?\nA: " in texts
    assert result.without_passages == 2
    # four of six find theirs, first; two find nothing
    names = ("recall@1", "recall@2", "mrr@2", "recall@prompt")
    assert [result.metrics[name].value for name in names] == pytest.approx([2 / 3] * 4)
    lengths = {answer.question: answer.prompt_tokens for answer in result.answers}
    assert lengths["colour?"] < lengths["colour of the north roof"] - 20


def test_with_and_without_are_compared_by_the_command(world, notes, tmp_path, capsys):
    config = tmp_path / "config.py"
    content = schema.to_dict(Evaluation(tasks={"a": task(notes)}))
    config.write_text(f"def get_config():\n    return {content!r}\n")
    line = ["--config", str(config), "--run", str(world.base)]
    out = tmp_path / "without.json"
    evaluate.main([*line, "--config.tasks.a.retrieval=None", "--out", str(out)])
    assert "recall" not in capsys.readouterr().out
    both = [tmp_path / name for name in ("with.json", "again.json")]
    for path in both:
        evaluate.main([*line, "--against", str(out), "--out", str(path)])
    printed = capsys.readouterr().out
    assert "a, recall@1: 66.7" in printed and "2 prompts without a passage" in printed
    assert f"against {out}:\n  asked otherwise: a: retrieval " in printed
    assert "\n  a, exact_match:" in printed
    first, again = (comparison.read_results(path)["a"] for path in both)
    assert first.answers == again.answers and first.answers[0].passages[0] == "north"
    assert comparison.read_results(out)["a"].answers[0].passages is None


def test_passages_leave_a_question_whole_in_a_window(world, notes):
    """The worst are left out first, and the question is cut no earlier than without any."""
    for window, count in ((200, 2), (90, 1), (50, 0)):
        the_task = dataclasses.replace(task(notes), sequence_length=window)
        result = ask(world, the_task)
        assert len(result.answers[0].passages) == count and not result.truncated
        values = result.answers[0].scores
        assert (values["recall@1"], values["recall@prompt"]) == (1, float(count > 0))


@pytest.mark.parametrize("cls", [Bm25, Dense])
def test_the_command_shows_passages_with_their_scores(cls, world, notes, tmp_path, capsys):
    config = tmp_path / "config.py"
    settings = {"embedder": str(world.base)} if cls is Dense else {}
    content = schema.to_dict(Evaluation(tasks={"a": task(notes, cls=cls, **settings)}))
    config.write_text(f"def get_config():\n    return {content!r}\n")
    line = ["--config", str(config), "--query", "the west roof", "--run", str(world.base)]
    capsys.readouterr()  # the world may have been made for this test
    retrieve.main(line)
    printed = capsys.readouterr().out
    assert printed.startswith(f"facts:train: 4 passages, {cls.kind}\n\nthe west roof\n  1. ")
    assert f"  west  ({notes}/facts-train.jsonl:4)\n     the west roof is white." in printed
    retrieve.main([*line, "--prompt"])
    assert "the west roof is white.\n\n" in capsys.readouterr().out
    if cls is Bm25:
        with pytest.raises(SystemExit, match="set retrieval.chunks.tokenizer to"):
            retrieve.main(line[:4])
        with pytest.raises(SystemExit, match="--task b: no such task that retrieves"):
            retrieve.main([*line, "--task", "b"])


def test_what_is_wrong_is_said_before_the_model_is_loaded(world, notes, monkeypatch):
    monkeypatch.setattr(runs, "load_model", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(
        ValueError, match=r"row 0 has no field 'document', which retrieval.relevant na"
    ):
        ask(world, task(notes, relevant="document"))
    with pytest.raises(ValueError, match="max_tokens=3 holds no passage"):
        ask(world, task(notes, max_tokens=3))
    with pytest.raises(ValueError, match="row 0: its right document 'red' is none of the 4"):
        ask(world, task(notes, relevant="completion"))
    test_source = JsonlConfig("asked", str(notes / "asked-{split}.jsonl"), split="test")
    with pytest.raises(ValueError, match="6 of 6 passages give the test away"):
        ask(world, dataclasses.replace(task(notes), retrieval=Bm25(test_source)))


def test_options_are_chosen_among_with_passages_before_the_question(world, notes):
    path = notes / "options-test.jsonl"
    records = [
        {
            "prompt": f"colour of the {side} roof",
            "choices": COLOURS,
            "answer": c,
            "document_id": side,
        }
        for side, c in FACTS.items()
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    the_task = MultipleChoice(
        JsonlConfig("options", str(notes / "options-{split}.jsonl")),
        unconditional="",
        objective=Supervised(template="Q: {prompt}\nA: "),
        retrieval=task(notes).retrieval,
    )
    assert not the_task.is_shared  # of several processes
    result = ask(world, the_task)
    assert [answer.passages[0] for answer in result.answers] == list(FACTS)
    assert result.metrics["recall@1"].value == 1 and "right/unconditional" in result.metrics
    plain = ask(world, dataclasses.replace(the_task, retrieval=None))
    answers = (result.answers, plain.answers)
    gains = [a.prompt_tokens - b.prompt_tokens for a, b in zip(*answers, strict=True)]
    assert min(gains) > 20 and plain.answers[0].passages is None
    settings = {"fields": {"completion": "answer"}, "unused_fields": ("choices",)}
    leaking = JsonlConfig("options", str(path), **settings)
    with pytest.raises(ValueError, match="4 of 4 passages give the test away"):
        ask(world, dataclasses.replace(the_task, retrieval=Bm25(leaking)))


def test_what_a_retrieval_depends_on_is_its_files(world, notes):
    the_task = task(notes)
    key = content_key(the_task.retrieval)
    path = notes / "facts-train.jsonl"
    content = path.read_text()
    path.write_text(content + json.dumps({"text": "more", "id": "x"}) + "\n")
    assert content_key(the_task.retrieval) != key
    path.write_text(content)
    assert content_key(the_task.retrieval) == key
    dense = task(notes, cls=Dense, embedder=str(world.base)).retrieval
    assert content_key(dense)["models"] == [runs.open_run(world.base).fingerprint, None]

"""A task's rows are read as it asks them, and what cannot be decided by is refused."""

import dataclasses
import json

import pytest

from research.data.sources import JsonlConfig
from research.decisions.baselines import measure_baselines
from research.decisions.metrics import choose_metric, score_text
from research.decisions.problem import open_problem, read_task
from research.decisions.rungs import zero_shot
from research.decisions.rungs.base import LeftOut, Place
from research.decisions.templates import default_templates
from research.decisions.ways import Base
from research.evaluation.generation_task import GenerationTask
from research.evaluation.multiple_choice import MultipleChoice
from research.evaluation.scorers.exact_match import ExactMatch
from research.evaluation.scorers.json_schema import JsonSchema
from research.evaluation.tasks import ChoiceTask, Evaluation
from research.objectives import Supervised
from research.retrieval.bm25 import Bm25
from tests.decisions.worlds import open_colours, tokenizer_of, write_colours


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_task_among_labels_is_asked_by_its_options_and_in_its_own_words(tmp_path, world):
    source = write_colours(tmp_path).source
    task = ChoiceTask(source, Supervised(template="Q: {prompt}\nA: "))
    evaluation = Evaluation(choice=task)
    problem = open_problem("a", read_task(evaluation), tmp_path / "rows", tokenizer_of(world))
    assert problem.labels == ("blue", "green", "red", "white") and problem.metric == "right"
    place = Place(problem, (Base("b", "b"),), default_templates(problem.template, ()), None)
    [way] = zero_shot.ways(place)
    asked_task = way.task(problem, "screen_1")
    question = asked_task.read()[0]
    assert question.text.startswith("Q: roof ") and question.text.endswith("\nA:")
    assert asked_task.delimiter == " "
    chat = dataclasses.replace(way, base=Base("b", "b", has_template=True))
    assert chat.task(problem, "screen_1").delimiter == ""
    counts = [len(problem.records(split)) for split in problem.screens]
    assert counts == [12, 12, 24] and len(problem.task_of("test").read()) == 32


def test_options_by_letters_become_letters_that_examples_can_show(tmp_path, world):
    records = [
        {"prompt": f"which is number {n}", "choices": [f"a{n}", f"b{n}"], "answer": n % 2}
        for n in range(80)
    ]
    write_lines(tmp_path / "test.jsonl", records)
    source = JsonlConfig("a", str(tmp_path / "{split}.jsonl"))
    problem = open_colours(tmp_path, world, MultipleChoice(source, letters=True))
    question = problem.task_of("test").read()[0]
    first, _, rest = question.text.partition("\n")
    number = first.rpartition(" ")[2]
    assert rest == f"A. a{number}\nB. b{number}"
    assert question.record["completion"] == "AB"[int(number) % 2]
    assert not problem.examples  # for evaluation only
    assert "ways that need labels are left out" in " ".join(problem.rows.notes)


def test_no_baseline_gives_other_questions_answers_where_each_has_options_of_its_own(
    tmp_path, world
):
    for name in ("train", "validation", "test"):
        records = [
            {"prompt": f"{name} number {n}", "choices": [f"a{n}", f"b{n}"], "answer": n % 2}
            for n in range(80)
        ]
        write_lines(tmp_path / f"{name}.jsonl", records)
    source = JsonlConfig("a", str(tmp_path / "{split}.jsonl"))
    texts = open_colours(tmp_path, world, MultipleChoice(source))
    with pytest.raises(LeftOut, match="each question has options of its own"):
        next(measure_baselines(texts))
    letters = open_colours(tmp_path / "letters", world, MultipleChoice(source, letters=True))
    assert [each.name for each in measure_baselines(letters)][0] == "majority"


def test_long_questions_are_cut_once_for_all_ways(tmp_path, world):
    problem = open_colours(tmp_path, world, prompt_tokens=3, example_tokens=2)
    words = tokenizer_of(world)
    records = [*problem.rows.train, *problem.rows.test]
    assert max(len(words.encode(record["prompt"])) for record in records) == 3
    assert max(len(words.encode(shot.prompt)) for shot in problem.examples) == 2
    assert "questions are cut to their first 3 tokens" in problem.rows.notes[-1]


def test_what_is_no_problem_is_refused_before_anything_is_asked(tmp_path, world):
    task = write_colours(tmp_path)
    retrieving = dataclasses.replace(task, retrieval=Bm25(task.source))
    with pytest.raises(ValueError, match="a retrieves already"):
        open_colours(tmp_path, world, retrieving)
    both = Evaluation(tasks={"a": task, "b": task})
    with pytest.raises(ValueError, match="several tasks: say which, --part a or b"):
        read_task(both)
    with pytest.raises(ValueError, match="--part aa: the config has a, b; did you mean a"):
        read_task(both, "aa")
    with pytest.raises(ValueError, match="--metric rihgt: the task has right.*did you mean right"):
        open_colours(tmp_path, world, metric="rihgt")
    wrong = dataclasses.replace(task, labels=("pink", "grey"))
    with pytest.raises(ValueError, match="is none of its 2 options"):
        open_colours(tmp_path, world, wrong)
    messages = [{"messages": [{"role": r, "content": "x"} for r in ("user", "assistant") * 2]}] * 40
    write_lines(tmp_path / "test.jsonl", messages)
    with pytest.raises(ValueError, match="row 0: it is a conversation of several messages"):
        open_colours(tmp_path, world, GenerationTask(task.source, (ExactMatch(),)))


def test_a_metric_that_some_rows_lack_is_refused(tmp_path, world):
    """A field of the reference is measured where it is there."""
    records = [
        {"prompt": f"roof {n}", "completion": json.dumps({"a": n} | ({"b": 1} if n % 4 else {}))}
        for n in range(80)
    ]
    write_lines(tmp_path / "test.jsonl", records)
    source = JsonlConfig("a", str(tmp_path / "{split}.jsonl"))
    task = GenerationTask(source, (JsonSchema(),), group=None)
    reading = read_task(Evaluation(tasks={"t": task}))
    place = (tmp_path / "rows", tokenizer_of(world))
    assert open_problem("a", reading, *place, metric="json/field/a").metric == "json/field/a"
    with pytest.raises(ValueError, match=r"field/b: \d+ of \d+ rows of validation do not have"):
        open_problem("a", reading, *place, metric="json/field/b")


def test_the_metric_that_decides_and_what_a_text_is_worth_by_it(tmp_path):
    assert choose_metric(["json", "json/exact", "json/fields", "json/valid"]) == "json/fields"
    assert choose_metric(["right", "right/bytes"]) == "right"
    assert choose_metric(["exact_match", "rouge_l", "rules/all"]) == "rules/all"
    assert choose_metric(["own"]) == "own" and choose_metric(["a", "b"], "b") == "b"
    source = JsonlConfig("a", "a")
    task = GenerationTask(source, (ExactMatch(), JsonSchema()))
    record = {"completion": '{"a": 1, "b": 2}'}
    assert score_text(task, record, '{"a": 1, "b": 3}', "json/fields") == 0.5
    assert score_text(task, record, '{"a": 1, "b": 2}', "exact_match") == 1
    choice = MultipleChoice(source, labels=("x", "y"), reference="completion")
    assert score_text(choice, {"completion": "x"}, "x", "right") == 1
    assert score_text(choice, {"completion": "x"}, "z", "right") == 0

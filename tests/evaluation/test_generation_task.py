"""Answers in words: what is asked, what counts, and what two models' answers come to."""

import dataclasses
import json

import numpy as np
import pytest

from research.checkpoints import runs
from research.commands import evaluate, generate
from research.config import schema
from research.data.sources import JsonlConfig
from research.evaluation import comparison, questions, results
from research.evaluation.generation_task import GenerationTask
from research.evaluation.questions import Question
from research.evaluation.report import evaluate_run
from research.evaluation.results import Answer, TaskResult
from research.evaluation.scorers.exact_match import ExactMatch
from research.evaluation.scorers.pattern import Pattern
from research.evaluation.scorers.token_f1 import TokenF1
from research.evaluation.tasks import ChoiceTask, Evaluation, TextTask
from research.generation import decode, programs
from research.objectives import Chat, Supervised
from research.reports.statistics import paired_difference
from research.text.conversation import from_messages
from research.training.loop import train
from tests.helpers.tiny_run import world


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return JsonlConfig("a", str(path))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return world(tmp_path_factory.getbasetemp())


def task(place, **settings):
    source = place.questions().sources[0]
    defaults = {"split": "heldout", "scorers": (ExactMatch(), TokenF1()), "max_tokens": 6}
    return GenerationTask(source, **defaults | {"batch_size": 5} | settings)


def test_answers_are_those_that_each_question_gets_alone(place):
    """However questions are batched: 12 of them in batches of 5, of prompts of other lengths."""
    run = runs.open_run(place.base)
    objective = Supervised(template="Q: {prompt}\nA: ", answer_tokens=8)
    evaluation = Evaluation(tasks={"colours": task(place, objective=objective)})
    result = evaluate_run(run, evaluation).tasks["colours"]
    assert len(result.answers) == 12 and result.metrics.keys() == {"exact_match", "token_f1"}
    model = runs.load_model(run, *_everywhere())
    for answer in result.answers[::5]:
        ids, _ = objective.encode_prompt(run.tokenizer, answer.question, 1024)
        (alone,) = decode.generate(model, [ids], 6, run.tokenizer.end_id)
        assert answer.answer == run.tokenizer.decode(alone)
        assert (answer.prompt_tokens, answer.new_tokens) == (len(ids), len(alone))
        assert answer.is_cut == (len(alone) == 6)


def _everywhere():
    from research import sharding

    return sharding.MeshConfig().make(), sharding.RULES


@pytest.mark.heavy
def test_a_tuned_run_is_compared_with_its_base_by_the_command(place, tmp_path, capsys):
    train(place.tuning(40), tmp_path / "tuned")
    config = tmp_path / "config.py"
    content = schema.to_dict(Evaluation(tasks={"colours": task(place)}))
    config.write_text(f"def get_config():\n    return {content!r}\n")
    line = ["--config", str(config), "--run", str(tmp_path / "tuned")]
    evaluate.main([*line, "--against", str(place.base), "--out", str(tmp_path / "tuned.json")])
    printed = capsys.readouterr().out
    assert "colours, exact_match: " in printed and f"against {place.base}:" in printed
    content = json.loads((tmp_path / "tuned.json").read_text())
    (difference, _) = content["against"]["differences"]
    tuned = comparison.read_results(tmp_path / "tuned.json")["colours"]
    right = [answer.scores["exact_match"] for answer in tuned.answers]
    assert difference["first"]["value"] == np.mean(right)
    # a file in the place of a run gives the same numbers
    evaluate.main([*line, "--against", str(tmp_path / "tuned.json")])
    assert capsys.readouterr().out.count(", +0.000 [") == 2


def test_thoughts_that_the_prompt_opens_and_that_are_cut_are_no_answer(place):
    run = runs.open_run(place.base)
    objective = Supervised(template="Q: {prompt}\nA: <think>\n", answer_tokens=8)
    scorer = Pattern("(?s).+", whole=False)
    thinking = task(place, objective=objective, scorers=(scorer,), max_tokens=2, max_questions=2)
    result = evaluate_run(run, Evaluation(tasks={"t": thinking})).tasks["t"]
    assert result.metrics["pattern"].value == 0 and all(each.answer for each in result.answers)


def test_a_task_says_what_thoughts_stand_between(place):
    """Only what is said behind the second mark is scored; the answer is shown whole."""
    run = runs.open_run(place.base)
    objective = Supervised(template="Q: {prompt}\nA: ", answer_tokens=8)
    scorer = Pattern("(?s).+", whole=False)
    plain = task(place, objective=objective, scorers=(scorer,), max_questions=1)
    (answer,) = evaluate_run(run, Evaluation(tasks={"t": plain})).tasks["t"].answers
    thinking = dataclasses.replace(plain, thoughts=("<muse>", answer.answer.strip()[-1]))
    (other,) = evaluate_run(run, Evaluation(tasks={"t": thinking})).tasks["t"].answers
    end = answer.answer.rpartition(answer.answer.strip()[-1])[2]
    assert other.answer == answer.answer and answer.scores == {"pattern": 1}
    assert other.scores == {"pattern": float(bool(end))}
    with pytest.raises(ValueError, match="`thoughts` are two texts"):
        dataclasses.replace(plain, thoughts=("<muse>", " "))


def test_a_file_of_answers_is_what_was_written_or_refused(place, tmp_path):
    """What another program or a fault made of it: no number, a weight that fills the memory."""
    answer = Answer("q?", "a", "d", {"m": 1.0}, weights={"m": 2})
    content = {"tasks": {"t": TaskResult([answer], 0, 1.0, settings={"kind": "x"}).to_dict()}}
    path = tmp_path / "a.json"

    def read(**changes):
        task = content["tasks"]["t"]
        whole = {"tasks": {"t": {**task, "answers": [task["answers"][0] | changes]}}}
        path.write_text(json.dumps(whole))
        return comparison.read_results(path)

    assert read()["t"].answers == [answer]
    for changes, error in (
        ({"scores": {"m": float("nan")}}, "m: expected a finite number, got nan"),
        ({"scores": {"m": 10**400}}, "m: expected a finite number"),
        ({"scores": {"m": True}}, "m: expected a valid number, got True"),
        ({"weights": {"m": 10**12}}, "weights .*1000000000000"),
        ({"weights": None}, "weights: expected an object"),
        ({"confidence": "x"}, "confidence: expected a valid number"),
        ({"question": 5}, "question: expected a valid string"),
        ({"cut": 1}, "cut: no such key"),
    ):
        with pytest.raises(ValueError, match=f"a.json: no answers to compare with.*{error}"):
            read(**changes)
    for text, error in (
        ('{"tasks": {}, "tasks": {}}', "appears twice"),
        ('{"tasks": ' + "[" * 100_000, "nested too deeply"),
        ("[]", "list indices"),
        ("", "Expecting value"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"no answers to compare with.*{error}"):
            comparison.read_results(path)


def test_one_file_is_not_read_and_written_and_holds_one_thing(tmp_path):
    path = str(tmp_path / "a.json")
    line = ["--task", "law", "--run", str(tmp_path / "none")]
    for flags in (["--out", path, "--page", path], ["--out", path, "--against", path]):
        with pytest.raises(SystemExit, match="name one file"):
            evaluate.main([*line, *flags])


def test_answers_that_were_scored_by_other_rules_are_not_compared(place, tmp_path, capsys):
    config, out = tmp_path / "config.py", tmp_path / "out.json"
    line = ["--config", str(config), "--run", str(place.base)]

    def ask(*flags, **settings):
        content = schema.to_dict(Evaluation(tasks={"t": task(place, max_questions=3, **settings)}))
        config.write_text(f"def get_config():\n    return {content!r}\n")
        evaluate.main([*line, *flags])

    ask("--out", str(out), max_tokens=2)
    ask("--against", str(out), max_tokens=3)
    assert "asked otherwise: t: max_tokens 3 and 2" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="scored by other rules"):
        ask("--against", str(out), scorers=(ExactMatch(comparison="exact"), TokenF1()))


def test_conversations_are_asked_up_to_their_last_answer(tmp_path):
    talk = [
        {"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))
    ]
    last = {"role": "assistant", "content": "d"}
    source = write(tmp_path / "a.jsonl", [{"messages": [*talk, last]}, {"messages": talk}])
    whole, open_ended = questions.read_questions(source, "train", ["completion"])
    assert whole.conversation == open_ended.conversation and whole.text == "c"
    assert whole.record["completion"] == "d" and "completion" not in open_ended.record
    assert whole.digest("d") == open_ended.digest("d") != whole.digest("e")
    documents = Question(0, from_messages(talk, (), {"documents": [{"text": "A"}]}), {})
    assert documents.digest("d") != whole.digest("d")  # of another document


def test_a_model_that_reads_the_last_text_alone_is_not_asked_conversations(place, tmp_path):
    run = runs.open_run(place.base)
    user = {"role": "user", "content": "roof 2"}
    answer = {"role": "assistant", "content": "red"}
    talks = [
        [{"role": "system", "content": "Answer blue."}, user, answer],
        [user, answer, user, answer],
        [user, answer, answer],
        [user | {"name": "Bob"}, answer],
    ]
    for talk in talks:
        source = write(tmp_path / "a.jsonl", [{"messages": [user, answer]}, {"messages": talk}])
        task = GenerationTask(source, (ExactMatch(),), split="train", max_tokens=2)
        with pytest.raises(ValueError, match="row 1: it is a conversation .*kind='chat'"):
            evaluate_run(run, Evaluation(tasks={"t": task}))
    # which reads them
    chat = dataclasses.replace(task, objective=Chat(ignored_fields=("name",)))
    assert len(evaluate_run(run, Evaluation(tasks={"t": chat})).tasks["t"].answers) == 2


def test_keys_and_values_are_stored_as_the_commands_say(place, tmp_path, monkeypatch):
    dtypes, empty = [], programs.empty_cache

    def note(model, rows, slots, kind):
        dtypes.append(kind)
        return empty(model, rows, slots, kind)

    monkeypatch.setattr(programs, "empty_cache", note)
    config, out = tmp_path / "config.py", tmp_path / "out.json"
    line = ["--config", str(config), "--run", str(place.base), "--out", str(out)]

    def ask(*flags, **parts):
        content = schema.to_dict(Evaluation(**parts))
        config.write_text(f"def get_config():\n    return {content!r}\n")
        evaluate.main([*line, *flags])
        return json.loads(out.read_text())["tasks"]["t"]

    tasks = {"t": task(place, max_questions=2, max_tokens=2)}
    wide = ask("--fresh", tasks=tasks)
    narrow = ask("--cache-dtype", "int8", "--fresh", tasks=tasks)
    assert "cache_dtype" not in wide["settings"] and narrow["settings"]["cache_dtype"] == "int8"
    # of a token: its segment and position, and of 2 layers keys and values of 2 heads, each 8
    # numbers of 4 bytes, or of one byte and a scale
    ratio = (8 + 8 * (8 + 4)) / (8 + 8 * 4 * 8)
    index = 4  # bytes
    wide_bytes, narrow_bytes = (each["cost"]["cache_bytes"] - index for each in (wide, narrow))
    assert narrow_bytes == round(ratio * wide_bytes)
    generate.main(["--run", str(place.base), "--prompt", "red", "--cache-dtype", "int8"])
    assert dtypes == [None, "int8", "int8"]
    text = TextTask(place.data().sources)
    with pytest.raises(SystemExit, match="cache_dtype int8: nothing that is asked is answered"):
        ask("--cache-dtype", "int8", text=text)


def test_the_right_answer_is_what_the_last_message_says(tmp_path):
    user = {"role": "user", "content": "roof 2"}
    answer = {"role": "assistant", "content": "red"}
    lists = {"prompt": [user], "completion": [answer]}
    conversations = []
    for record in (lists, {"messages": [user, answer]}):
        source = write(tmp_path / "a.jsonl", [record] * 2)
        question, _ = questions.read_questions(source, "train", ["completion"])
        assert question.record["completion"] == "red"
        conversations.append(question.conversation)
    assert conversations[0] == conversations[1]
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    others = [
        ({"content": None, "tool_calls": [call]}, "calls tools"),
        ({"content": "so:", "tool_calls": [call]}, "calls tools"),
        ({"train": False}, "has weight 0, so that it is none to compare with"),
    ]
    for changes, message in others:
        records = [{"messages": [user, answer]}, {"messages": [user, answer | changes]}]
        with pytest.raises(ValueError, match=f"row 1: the last answer {message}"):
            questions.read_questions(write(tmp_path / "a.jsonl", records), "train", [])


def test_fields_that_scorers_read_are_not_lost(tmp_path):
    records = [{"prompt": "a", "completion": "b", "most": 3, "cluster": i // 2} for i in range(4)]
    source = write(tmp_path / "a.jsonl", records)
    with pytest.raises(ValueError, match="'most' would be lost"):
        questions.read_questions(source, "train", [])
    rows = questions.read_questions(source, "train", ["most", "cluster", "completion"])
    assert [row.record["most"] for row in rows] == [3] * 4
    assert questions.read_groups(rows, "cluster").tolist() == ["0", "0", "1", "1"]
    assert questions.read_groups(rows, "none") is None


def test_bad_questions_are_refused_before_any_is_asked(place, tmp_path, monkeypatch):
    run = runs.open_run(place.base)
    monkeypatch.setattr(decode, "complete", lambda *_, **__: pytest.fail("it was asked"))

    def ask(records, *scorers):
        source = write(tmp_path / "a.jsonl", records)
        scorers = scorers or (ExactMatch(),)
        the_task = GenerationTask(source, scorers, split="train")
        return evaluate_run(run, Evaluation(tasks={"a": the_task}))

    pair = {"prompt": "a", "completion": "b"}
    with pytest.raises(ValueError, match="has 1 questions: nothing can be said"):
        ask([pair])
    with pytest.raises(ValueError, match=r"row 1, exact_match: its 'aliases' is no right answer"):
        ask([pair | {"aliases": ["b"]}, pair], ExactMatch(reference="aliases"))
    with pytest.raises(ValueError, match=r"row 1 has no field 'cluster'"):
        ask([pair | {"cluster": 1}, pair])
    with pytest.raises(ValueError, match="all questions have the cluster '1': they are one group"):
        ask([pair | {"cluster": 1}] * 2)
    with pytest.raises(ValueError, match="two scorers are called 'exact_match'"):
        GenerationTask(place.questions().sources[0], (ExactMatch(), ExactMatch()))
    with pytest.raises(ValueError, match="needs `scorers`"):
        GenerationTask(place.questions().sources[0], ())


def result(rights, metric="right", **settings):
    answers = [
        Answer(str(i), "x", questions.digest(i), {metric: float(right)}, **settings)
        for i, right in enumerate(rights)
    ]
    return TaskResult(answers, 0, 1.0)


def test_two_models_are_compared_on_the_same_questions_in_any_order():
    a, b = [1, 1, 1, 0, 1, 0, 1, 1], [0, 1, 0, 0, 1, 0, 0, 1]
    second = result(b)
    shuffled = dataclasses.replace(second, answers=second.answers[::-1])
    (one,) = comparison.compare({"t": result(a)}, {"t": shuffled, "u": second})
    paired = paired_difference(np.asarray(a), np.asarray(b))
    assert (one.task, one.metric, one.paired, one.p_value) == ("t", "right", paired, paired.p_value)
    (degrees,) = comparison.compare({"t": result([0.5, 0.7, 0.2])}, {"t": result([0.4, 0.5, 0.1])})
    assert degrees.paired.difference.value == pytest.approx(0.4 / 3)  # a mean of three
    with pytest.raises(ValueError, match="2 questions in common, of 3 and 2"):
        comparison.compare({"t": result([1, 0, 1])}, {"t": result([1, 0])})
    with pytest.raises(ValueError, match="no task in common: t and u"):
        comparison.compare({"t": second}, {"u": second})


def test_each_thing_of_an_answer_counts_alike():
    """Two of three instructions followed, then none of one: two of four."""

    def answers(first, second):
        numbers = ((first, 3), (second, 1))
        return [
            Answer(str(i), "x", str(i), {"share": share}, weights={"share": n}, unscored={"a": i})
            for i, (share, n) in enumerate(numbers)
        ]

    one, other = (TaskResult(answers(*each), 0, 1.0) for each in ((2 / 3, 0.0), (1 / 3, 1.0)))
    assert one.metrics["share"].value == 0.5 and one.metrics["share"].n == 4
    assert one.unscored == {"a": 1}
    (both,) = comparison.compare({"t": one}, {"t": other})
    assert (both.first.value, both.second.value, both.paired.difference.value) == (0.5, 0.5, 0)


def test_results_are_read_as_they_were_written(tmp_path):
    first = result([1, 0, 0.5], is_cut=True, unreadable="no", new_tokens=3, weights={"right": 2})
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"tasks": {"t": first.to_dict()}}))
    assert comparison.read_results(path)["t"] == first
    assert (first.cut, first.unreadable, first.new_tokens) == (3, 3, 9)
    path.write_text("{}")
    with pytest.raises(ValueError, match="no answers to compare with .*--out"):
        comparison.read_results(path)
    once = [*result([1, 0]).answers, *result([0.3], "rare").answers]
    assert results.TaskResult(once, 0, 1.0).metrics.keys() == {"right"}  # no interval of one


def test_labels_asked_after_other_worked_examples_are_named(place, tmp_path, capsys):
    config, out = tmp_path / "config.py", tmp_path / "out.json"
    source = dataclasses.replace(place.questions().sources[0], split="train")
    line = ["--config", str(config), "--run", str(place.base)]
    choice = ChoiceTask(source, Supervised(template="Q: {prompt}\nA: "), "heldout", batch_size=8)
    content = schema.to_dict(Evaluation(choice=choice))
    config.write_text(f"def get_config():\n    return {content!r}\n")
    evaluate.main([*line, "--out", str(out)])
    evaluate.main([*line, "--against", str(out), "--config.choice.shots=1"])
    assert "asked otherwise: choice: shots 1 and 0" in capsys.readouterr().out

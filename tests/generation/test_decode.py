"""Decoding in batches gives what the model predicts: token by token, prompt by prompt."""

import subprocess

import jax
import numpy as np
import pytest

from research import sharding
from research.checkpoints import runs
from research.commands import generate as program
from research.generation import decode
from research.generation.sampling import Sampling
from research.methods import LoRA
from research.sharding import MeshConfig
from research.text import tokenizer as tokenizers
from research.training.loop import train
from tests.helpers import tiny, tiny_run

NEVER = -1  # an end token that no model says
random = np.random.default_rng(0)
PROMPTS = [random.integers(1, tiny.CONFIG.vocabulary, n).tolist() for n in (5, 1, 70, 12)]
WARM = Sampling(temperature=1.0, top_k=20, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def model():
    return tiny.shaken(tiny.model(), size=0.3)


@pytest.fixture(scope="module")
def greedy(model):
    return decode.generate(model, PROMPTS, 10, NEVER)


def test_greedy_decoding_is_the_argmax_of_the_full_forward_pass(model, greedy):
    width = max(map(len, PROMPTS)) + 10
    for prompt, completion in zip(PROMPTS, greedy, strict=True):
        whole = np.zeros((1, width), np.int32)
        whole[0, : len(prompt) + 10] = prompt + completion
        batch = tiny.Batch(
            whole, whole, whole, np.ones_like(whole), np.arange(width, dtype=np.int32)[None]
        )
        best = np.argmax(jax.jit(tiny.logits)(model, batch)[0], axis=-1)
        assert completion == best[len(prompt) - 1 : len(prompt) + 9].tolist()
    assert len({token for completion in greedy for token in completion}) > 10


def test_a_batch_of_ragged_prompts_equals_them_one_by_one(model, greedy):
    for prompt, completion in zip(PROMPTS, greedy, strict=True):
        assert decode.generate(model, [prompt], 10, NEVER) == [completion]


def test_a_row_ends_at_end_of_text_and_the_batch_when_all_rows_have(model, greedy):
    end = greedy[0][4]
    assert end not in greedy[0][:4]
    expected = [row[: row.index(end)] if end in row else row for row in greedy]
    assert any(end not in row for row in greedy)
    assert decode.generate(model, PROMPTS, 10, end) == expected
    columns = np.stack(list(decode.stream(model, PROMPTS, 10, end)), axis=1)
    assert columns.shape == (4, 10) and columns.dtype == np.int32
    assert np.all(columns[0, 4:] == end)  # and it says nothing else from then on
    assert len(list(decode.stream(model, PROMPTS[:1], 10, end))) == 5
    assert decode.generate(model, PROMPTS[:1], 10, greedy[0][0]) == [[]]


def test_the_stream_yields_what_generate_returns(model):
    columns = list(decode.stream(model, PROMPTS, 7, NEVER, WARM))
    assert np.stack(columns, 1).tolist() == decode.generate(model, PROMPTS, 7, NEVER, WARM)


def test_a_rows_draws_depend_on_its_number_and_the_seed_alone(model, greedy):
    four = decode.generate(model, PROMPTS, 10, NEVER, WARM)
    assert decode.generate(model, PROMPTS[:2], 10, NEVER, WARM) == four[:2]
    other = Sampling(WARM.temperature, WARM.top_k, WARM.top_p, seed=4)
    assert decode.generate(model, PROMPTS, 10, NEVER, other) != four != greedy
    twice = decode.generate(model, [PROMPTS[0]] * 2, 10, NEVER, WARM)
    assert twice[0] != twice[1]


def test_prompts_without_a_token_are_refused(model):
    for prompts in ([], [[1], []]):
        with pytest.raises(ValueError, match="a prompt holds no token"):
            decode.generate(model, prompts, 1, NEVER)


@pytest.fixture(scope="module")
def tuned_path(world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    train(world.tuning(20, method=LoRA(rank=4)), workdir)
    return workdir


def answers(path, prompts):
    """What a run says after prompts (token ids), at most 12 tokens of the likeliest."""
    run, mesh = runs.open_run(path), MeshConfig().make()
    with sharding.mesh_context(mesh, sharding.RULES):
        model = runs.load_model(run, mesh, sharding.RULES)
        rows = decode.generate(model, prompts, 12, run.tokenizer.end_id)
    return [run.tokenizer.decode(row) for row in rows]


def test_the_program_prints_what_the_model_says(world, capsys):
    prompts = ["red leaves", "blue", "green leaves fall on 7"]
    tokenizer = tokenizers.load(world.folder / "tokenizer.json")
    expected = answers(world.base, [[tokenizer.begin_id, *tokenizer.encode(p)] for p in prompts])
    assert all(expected) and len(set(expected)) > 1
    capsys.readouterr()
    line = ["--run", str(world.base), "--tokens", "12"]
    program.main([*line, *(f"--prompt={prompt}" for prompt in prompts)])
    assert capsys.readouterr().out.splitlines() == expected
    for prompt, completion in zip(prompts[:2], expected, strict=False):
        program.main([*line, "--prompt", prompt])
        assert capsys.readouterr().out == completion + "\n"


@pytest.mark.heavy
def test_the_program_asks_for_prompts_and_wraps_them_as_in_tuning(world, tuned_path):
    prompts = ["roof 1 red", "roof 4 blue"]
    tokenizer = tokenizers.load(world.folder / "tokenizer.json")
    parts = [("Q: ", prompt, "\nA: ") for prompt in prompts]
    ids = [
        [tokenizer.begin_id, *(i for part in ps for i in tokenizer.encode(part))] for ps in parts
    ]
    expected = answers(tuned_path, ids)
    line = tiny_run.command("generate", "--run", tuned_path, "--tokens", "12")
    process = subprocess.run(
        line, cwd=tiny_run.ROOT, input="\n".join(prompts) + "\n", capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == expected


def test_the_program_names_what_is_wrong(world, tmp_path):
    with pytest.raises(SystemExit, match="error: no checkpoint in .*nowhere"):
        program.main(["--run", str(tmp_path / "nowhere"), "--prompt", "a"])
    with pytest.raises(SystemExit, match="error: sampling: temperature -1.0"):
        program.main(["--run", str(world.base), "--prompt", "a", "--temperature", "-1"])

"""Heads for classes or a number in transformers and PEFT: the same scores, losses and gradients."""

import dataclasses

import jax
import numpy as np
import pytest

from research import sharding, tree
from research import step as stepping
from research.batch import Batch
from research.checkpoints import runs
from research.commands import convert
from research.interop import exporting, huggingface, importing, model_card, score_heads
from research.interop.families import FAMILIES
from research.interop.family import parameter_shapes
from research.interop.fields import UnsupportedModelError
from research.interop.gguf import adapters as gguf_adapters
from research.interop.peft import exporting as peft_exporting
from research.interop.score_heads import ScoreHead
from research.losses import CrossEntropy, SquaredError
from research.losses.weighted import loss_sums
from research.methods import Classifier, Full, LoRA, Several
from research.models.transformer import Transformer
from research.objectives import Classification, Regression
from research.training.loop import train
from tests.helpers import rounding, tiny_run
from tests.interop.test_huggingface import their_model

pytestmark = pytest.mark.heavy
LENGTHS = (9, 24, 17)
# what differs: joined and transposed matrices, a soft cap, the name of the class
FORMS = ("llama", "phi3", "gemma2", "gemma3", "gpt2")
NAMES = ("mild", "severe", "none")


def padded(lengths=LENGTHS, pad=0):
    """Rows of random tokens, padded on the right."""
    tokens = np.random.default_rng(1).integers(1, 96, (len(lengths), max(lengths)))
    is_token = np.arange(tokens.shape[1]) < np.asarray(lengths)[:, None]
    return np.where(is_token, tokens, pad).astype(np.int32), is_token


def their_scores(model, tokens, is_token):
    import torch

    with torch.no_grad():
        mask = torch.from_numpy(is_token).long()
        return model(torch.from_numpy(tokens).long(), attention_mask=mask).logits.float().numpy()


def test_every_family_has_a_class_for_it():
    import transformers

    for family in FAMILIES.values():
        assert hasattr(transformers, score_heads.architecture(family)), family.kind


@pytest.mark.parametrize("case", FORMS)
def test_every_familys_class_gives_the_scores_of_the_same_weights(case, tmp_path):
    import transformers

    their_model(case).save_pretrained(tmp_path / "base")
    base = huggingface.open_folder(tmp_path / "base")
    values = dict(importing.read_parameters(base, parameter_shapes(base.config)))
    weight = np.random.default_rng(0).normal(size=(3, base.config.width)).astype(np.float32)
    fields = {"id2label": dict(zip("012", NAMES, strict=True)), "pad_token_id": 0}
    names = huggingface.write_folder(
        tmp_path / "out",
        base.config,
        lambda name: np.asarray(values[name]),
        kind=base.family.kind,
        head=ScoreHead(weight, fields),
    )
    assert {"score.weight"} <= set(names) and not [n for n in names if "lm_head" in n]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__.endswith("ForSequenceClassification")
    assert [theirs.config.id2label[n] for n in range(3)] == list(NAMES)
    tokens, is_token = padded()
    model = jax.eval_shape(lambda key: Transformer(key, base.config), jax.random.key(0))
    model = tree.unflatten(model, tree.restack(values, tree.flatten(model)))
    places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    hidden = jax.jit(lambda m: m.hidden(tokens, is_token.astype(np.int32), places)[0])(model)
    last = np.asarray(hidden)[np.arange(3), np.asarray(LENGTHS) - 1]
    count = rounding.forward_roundings(base.config, 24)
    rounding.assert_close(their_scores(theirs, tokens, is_token), last @ weight.T, roundings=count)
    with pytest.raises(UnsupportedModelError, match="ForSequenceClassification'; Graft computes"):
        huggingface.open_folder(tmp_path / "out")


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_loss_and_gradients_are_those_of_llama_for_sequence_classification(kind):
    import torch
    import transformers

    outputs = 3 if kind == "classes" else 1
    shape = {"num_labels": outputs, "pad_token_id": 0, "tie_word_embeddings": True}
    torch.manual_seed(0)
    config = their_model("llama", **shape).config
    theirs = transformers.LlamaForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(3) if parameter.ndim > 1 else parameter.add_(0.2)
    tokens, is_token = padded()
    random = np.random.default_rng(2)
    classes, numbers = random.integers(0, 3, 3), random.normal(size=3).astype(np.float32)
    labels = torch.from_numpy(classes if kind == "classes" else numbers)
    mask = torch.from_numpy(is_token).long()
    loss = theirs(torch.from_numpy(tokens).long(), attention_mask=mask, labels=labels).loss
    loss.backward()

    family = huggingface.find_family(config.to_dict() | {"architectures": None}, "config.json")
    ours = huggingface.read_config(family, config.to_dict(), "config.json")
    method = Several(of=(Full(), Classifier(outputs)))
    shapes = jax.eval_shape(
        lambda key: method.attach(Transformer(key, ours), key), jax.random.key(0)
    )
    places = huggingface.sources(family, parameter_shapes(ours))

    def read(attribute):
        tensors = {
            name: getattr(parameter, attribute).detach().numpy()
            for name, parameter in theirs.named_parameters()
        }
        values = {
            name: tensors[source.name].T if source.transposed else tensors[source.name]
            for name, source in places.items()
        }
        values["head/site/classifier/kernel"] = tensors["score.weight"].T
        return tree.restack(values, tree.flatten(shapes))

    # packed: one row holds all three, and their own padding is left out
    columns = np.concatenate([np.arange(length) for length in LENGTHS])
    ends = np.cumsum(LENGTHS) - 1
    targets, values = np.zeros((2, len(columns)), np.int32), np.zeros(len(columns), np.float32)
    weights = np.zeros(len(columns), np.float32)
    targets[0, ends], values[ends], weights[ends] = classes * (outputs > 1), numbers, 1
    row = (tokens[is_token], targets[0], weights, np.repeat([1, 2, 3], LENGTHS), columns)
    batch = Batch(*(each[None].astype(e) for each, e in zip(row, "iifii", strict=True)))
    batch = dataclasses.replace(batch, values=values[None])

    def mean(leaves):
        model = tree.unflatten(shapes, leaves)
        hidden = stepping.last_hidden(model, batch, None)
        of = CrossEntropy() if kind == "classes" else SquaredError()
        return loss_sums(of, model, hidden, batch, None, None)[0] / 3

    value, gradients = jax.jit(jax.value_and_grad(mean))(read("data"))
    # of the issue: 1e-4, here of each leaf's largest number
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    for name, expected in read("grad").items():
        size = np.abs(expected).max()
        # as above
        np.testing.assert_allclose(gradients[name] / size, expected / size, atol=1e-4, err_msg=name)
    assert all(np.abs(leaf).max() > 0 for leaf in gradients.values())


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    objective = Classification(labels=tiny_run.COLOURS, template="Q: {text}")
    method = Several(of=(LoRA(rank=4, alpha=4.0), Classifier(4)))
    data = world.data("questions", objective=objective)
    train(world.tuning(3, data=data, method=method), folder / "run")
    return folder / "run"


TEXTS = [f"Q: roof {n} {colour}" for n, colour in enumerate(tiny_run.COLOURS)]


def our_scores(folder):
    run = runs.open_run(folder)
    model = runs.load_model(run, *sharding.one_device())
    rows = []
    for text in TEXTS:
        ids = np.asarray([[*run.tokenizer.opening, *run.tokenizer.encode(text)]], np.int32)
        hidden = model.hidden(ids, np.ones_like(ids), np.arange(ids.shape[1])[None])[0]
        rows.append(model.logits(hidden)[0, -1])
    return np.asarray(rows)


def test_a_tuned_run_is_a_folder_and_an_adapter_with_its_tokenizer(tuned, world, tmp_path):
    import peft
    import torch
    import transformers

    expected = our_scores(tuned)
    assert np.ptp(expected) > 1e-2
    convert.main(["export", "--from", str(tuned), "--out", str(tmp_path / "whole")])
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    theirs = load(tmp_path / "whole").eval()
    assert list(theirs.config.id2label.values()) == list(tiny_run.COLOURS)
    assert theirs.config.problem_type == "single_label_classification"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "whole")
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        actual = theirs(**inputs).logits.numpy()
    rounding.assert_close(actual, expected, roundings=tiny_run.ROUNDINGS)
    ask = transformers.pipeline("text-classification", model=theirs, tokenizer=tokenizer)
    assert [a["label"] for a in ask(TEXTS)] == [tiny_run.COLOURS[i] for i in expected.argmax(1)]
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card and "red, green, blue, white" in card

    exporting.export_huggingface(runs.open_run(world.base), tmp_path / "base")
    arguments = ["export", "--from", str(tuned), "--format", "peft"]
    convert.main([*arguments, "--out", str(tmp_path / "adapter")])
    base = load(tmp_path / "base", num_labels=4, pad_token_id=tokenizer.pad_token_id)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert adapted.peft_config["default"].task_type == "SEQ_CLS"
    with torch.no_grad():
        actual = adapted(**inputs).logits.numpy()
    rounding.assert_close(actual, expected, roundings=tiny_run.ROUNDINGS)


def test_an_export_of_a_number_says_so(world, tmp_path):
    data = world.data("questions", objective=Regression())
    source = dataclasses.replace(data.sources[0], fields={"text": "prompt", "label": "n"})
    source = dataclasses.replace(source, path=str(tmp_path / "{split}.jsonl"))
    lines = [f'{{"prompt": "roof {n}", "n": {n / 4}}}\n' for n in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    data = dataclasses.replace(data, sources=(source,))
    experiment = world.tuning(1, data=data, method=Classifier(1), loss=SquaredError())
    train(experiment, tmp_path / "run")
    exporting.export_huggingface(runs.open_run(tmp_path / "run"), tmp_path / "out")
    content = huggingface.read_json(tmp_path / "out" / "config.json")
    assert content["problem_type"] == "regression" and content["id2label"] == {"0": "LABEL_0"}
    with pytest.raises(UnsupportedModelError, match="leaves no adapter of PEFT's"):
        peft_exporting.adapter_tensors(runs.open_run(tmp_path / "run"))


def test_formats_without_a_place_for_it_refuse_it_before_anything_is_written(tuned, tmp_path):
    run = runs.open_run(tuned)
    with pytest.raises(SystemExit, match="a base and a GGUF file have no place"):
        convert.main(
            ["export", "--from", str(tuned), "--format", "gguf", "--out", f"{tmp_path}/x.gguf"]
        )
    with pytest.raises(UnsupportedModelError, match="no adapter of llama.cpp's"):
        gguf_adapters.plan(run)
    assert not list(tmp_path.iterdir())
    assert "AutoModelForSequenceClassification" in model_card.write(run, "hf", "x")


def test_a_template_that_ends_with_padding_is_refused(tuned):
    run = runs.open_run(tuned)
    pad = run.tokenizer.roles["pad"]
    objective = Classification(labels=tiny_run.COLOURS, template="{text}" + pad)
    data = dataclasses.replace(run.experiment.data, objective=objective)
    experiment = dataclasses.replace(run.experiment, data=data)
    with pytest.raises(UnsupportedModelError, match="ends with the token that the tokenizer pads"):
        exporting.plan_huggingface(dataclasses.replace(run, experiment=experiment))

"""GGUF files: llama.cpp computes from ours what we compute, and ours come back as they were."""

import gguf
import jax
import numpy as np
import pytest

from research.checkpoints import runs
from research.interop import exporting, importing
from research.interop.fields import UnsupportedModelError
from research.interop.gguf import files
from research.interop.gguf import writer as gguf_writer
from tests.helpers import rounding, tiny, tiny_run
from tests.interop.test_huggingface import our_logits, their_model

# llama.cpp fixes more than the files say: Gemma's cycles of windows and its scale of scores
CASES = {
    "llama": {},
    "llama-3": {"attention_bias": False, "mlp_bias": False, "hidden_size": 64, "head_dim": 64,
                "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
                                    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                    "original_max_position_embeddings": 8192}},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16, "num_hidden_layers": 6, "layer_types": None,
               "sliding_window": 5},
    "gpt2": {},
    "phi3": {},
}  # fmt: skip
IDS = np.random.default_rng(0).integers(3, 288, 12).astype(np.int32)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    return tiny_run.world(tmp_path_factory.getbasetemp()).folder / "tokenizer.json"


def import_theirs(case, changes, tokenizer_file, tmp_path):
    """A tiny random model of transformers as a run's folder."""
    import transformers

    their_model(case, vocab_size=288, **changes).save_pretrained(tmp_path / "theirs")
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file),
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
    ).save_pretrained(tmp_path / "theirs")
    importing.import_model(importing.open_model(tmp_path / "theirs"), tmp_path / "run")
    return runs.open_run(tmp_path / "run")


def server(path, adapter=None):
    """llama.cpp with the file, and perhaps a LoRA's, on a port of its own."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 128, 1, False, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    # its flash attention rounds keys and values to 16 bits
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def llama_cpp(path, ids, vocabulary, adapter=None):
    """llama.cpp's log-probabilities [S,V] after each token, from the file (and a LoRA's) alone."""
    running = server(path, adapter)
    logprobs = np.zeros((len(ids), vocabulary), np.float32)
    for n in range(len(ids)):
        # the token that it then says is fixed, so that it is no half of a character; the
        # probabilities are the model's own
        ask = {"prompt": ids[: n + 1].tolist(), "n_predict": 1, "n_probs": vocabulary}
        ask |= {"temperature": 0.0, "cache_prompt": False, "logit_bias": [[40, 1000.0]]}
        answer = running.handle_completions(ask)["choices"][0]["logprobs"]["content"][0]
        for entry in answer["top_logprobs"]:
            logprobs[n, entry["id"]] = entry["logprob"]
    return logprobs


@pytest.mark.heavy
@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_what_we_compute(case, tokenizer_file, tmp_path):
    run = import_theirs(case, CASES[case], tokenizer_file, tmp_path)
    file = tmp_path / "model.gguf"
    gguf_writer.export_gguf(run, file)
    back = files.open_file(file)
    ours = jax.nn.log_softmax(our_logits(importing.open_model(tmp_path / "theirs"), IDS[None])[0])
    again = jax.nn.log_softmax(our_logits(back, IDS[None])[0])
    count = rounding.forward_roundings(run.model, len(IDS))
    rounding.assert_close(again, ours, roundings=count)
    theirs = llama_cpp(file, IDS, 288)
    # llama.cpp looks GELU up in a table of float16
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-3)
    top = np.sort(ours, axis=-1)
    clear = top[:, -1] - top[:, -2] > 0.05
    assert clear.any() and (theirs.argmax(-1) == np.asarray(ours).argmax(-1))[clear].all()
    tokenizer = importing.load_tokenizer(back)
    text = "Red roofs, 123 leaves fall.\n\n  é"
    assert tokenizer.encode(text) == run.tokenizer.encode(text)
    assert tokenizer.roles == run.tokenizer.roles
    back_again(back, tmp_path)


def back_again(model, tmp_path):
    """From GGUF to transformers' folder: the weights that went into the file, to rounding."""
    importing.import_model(model, tmp_path / "again")
    exporting.export_huggingface(runs.open_run(tmp_path / "again"), tmp_path / "ours")
    before = importing.open_model(tmp_path / "theirs")
    after = importing.open_model(tmp_path / "ours")
    assert after.tensors.shapes == before.tensors.shapes
    for name, shape in before.tensors.shapes.items():
        whole = tuple(slice(None) for _ in shape)
        was, now = (side.tensors.read(name, whole) for side in (before, after))
        # Gemma's norms, to which llama.cpp adds 1: two roundings of numbers below 2
        roundings = 2 if "norm" in name else 0
        rounding.assert_close(now, was, roundings=roundings, scale=2, err_msg=name)


def test_what_llama_cpp_would_compute_otherwise_is_refused():
    with pytest.raises(UnsupportedModelError, match="qwen3 has no bias of query"):
        gguf_writer._check_fixed("qwen3", tiny.config(biases=("query",)))
    shape = tiny.config(windows=(4,))
    with pytest.raises(UnsupportedModelError, match=r"llama sees other windows than \(4,\)"):
        gguf_writer._check_fixed("llama", shape)
    with pytest.raises(UnsupportedModelError, match=r"phi3 sees everything, not windows \(4,\)"):
        gguf_writer._check_fixed("phi3", shape)
    gemma = {"windows": (4, 0), "score_cap": 50.0, "logit_cap": 30.0}
    gguf_writer._check_fixed("gemma2", tiny.config(**gemma))
    with pytest.raises(UnsupportedModelError, match="root of 8, not of 24"):
        gguf_writer._check_fixed("gemma2", tiny.config(**gemma, score_size=24))
    for name, nothing in (("windows", (0,)), ("score_cap", 0.0), ("logit_cap", 0.0)):
        with pytest.raises(UnsupportedModelError, match="takes its own for those that a model has"):
            gguf_writer._check_fixed("gemma2", tiny.config(**gemma | {name: nothing}))
    with pytest.raises(UnsupportedModelError, match="gemma3 does not cap scores"):
        gguf_writer._check_fixed("gemma3", tiny.config(score_cap=50.0))


def test_broken_files_are_refused_with_what_is_wrong(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "rwkv")
    writer.add_tensor("x.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        UnsupportedModelError, match="architecture 'rwkv'; Graft knows llama, qwen2"
    ):
        files.open_file(tmp_path / "one.gguf")
    content = (tmp_path / "one.gguf").read_bytes()
    for length in (0, 3, 20, len(content) - 40):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(UnsupportedModelError, match="no whole GGUF file|cut short"):
            files.open_file(tmp_path / "cut.gguf")

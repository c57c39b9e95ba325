"""SentencePiece's BPE inside GGUF: the same ids as by its own rule, and as llama.cpp's."""

import json
import urllib.request

import hypothesis.strategies as st
import pytest
import tokenizers
from hypothesis import example, given, settings
from tokenizers import AddedToken, decoders, models, normalizers, trainers

from research.checkpoints import runs
from research.interop import importing
from research.interop.fields import UnsupportedModelError
from research.interop.gguf import files, sentencepiece, tokenizer, writer
from research.interop.gguf.sentencepiece import SPACE, Kind
from research.text.tokenizer import Tokenizer
from tests.interop.gguf.test_gguf import server
from tests.interop.test_huggingface import their_model

LETTERS = ["a", "b", "é", SPACE]
BYTES = [sentencepiece.byte_token(byte) for byte in range(256)]
TEXTS = st.text(st.sampled_from("abcé \n\tß🙂<>01,世"), max_size=40)


def metadata(pieces, scores, prefix):
    """GGUF's keys for a vocabulary of single letters, bytes and `pieces`."""
    tokens = ["<unk>", "<s>", "</s>", "\n\n", *BYTES, *LETTERS, *pieces]
    kinds = [Kind.UNKNOWN, Kind.CONTROL, Kind.CONTROL, Kind.USER_DEFINED, *[Kind.BYTE] * 256]
    kinds += [Kind.NORMAL] * (len(LETTERS) + len(pieces))
    all_scores = [0.0] * (len(tokens) - len(pieces)) + list(scores)
    content = {"model": "llama", "tokens": tokens, "scores": all_scores, "token_type": kinds}
    content |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    content |= {"add_bos_token": True, "add_space_prefix": prefix}
    return {f"tokenizer.ggml.{name}": value for name, value in content.items()}


def encode_by_the_rule(text, content):
    """Ids of one stretch of text: of all neighbours that make a piece, the best score merges."""
    tokens, scores = (content[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores"))
    ids = {token: number for number, token in enumerate(tokens)}
    parts = list(text.replace(" ", SPACE))
    while True:
        pairs = [
            (-scores[ids[left + right]], at)
            for at, (left, right) in enumerate(zip(parts, parts[1:], strict=False))
            if left + right in ids
        ]
        if not pairs:
            break
        _, at = min(pairs)
        parts[at : at + 2] = ["".join(parts[at : at + 2])]
    names = []
    for part in parts:
        names += [part] if part in ids else map(sentencepiece.byte_token, part.encode())
    return [ids[name] for name in names]


def read(content):
    return tokenizers.Tokenizer.from_str(
        tokenizer.files(content, "GGUF")["tokenizer.json"].decode()
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(st.sampled_from(LETTERS), min_size=2, max_size=4), max_size=12, unique=True),
    TEXTS,
    st.booleans(),
    st.randoms(use_true_random=False),
)
@example(["ab", f"{SPACE}a", "éa"], "ab  é🙂 ab", True, None)
def test_the_best_score_merges_first(pieces, text, prefix, random):
    scores = [-float(number) for number in range(len(pieces))]
    if random:
        random.shuffle(scores)
    content = metadata(pieces, scores, prefix)
    backend = read(content)
    stretches = text.split("\n\n")  # a user's own token comes before everything
    expected = []
    for number, stretch in enumerate(stretches):
        expected += [3] * bool(number)
        expected += encode_by_the_rule(" " * (prefix and stretch != "") + stretch, content)
    assert backend.encode(text, add_special_tokens=False).ids == expected
    assert prefix or backend.decode(expected) == text


@pytest.mark.parametrize("prefix", [False, True])
def test_what_is_written_is_what_was_read(prefix):
    content = metadata(["ab", f"{SPACE}a", "aba", "éa"], [-3.0, -1.0, -2.0, -4.0], prefix)
    backend = read(content)
    pieces, again = sentencepiece.pieces(json.loads(backend.to_str()), "here")
    assert again == prefix
    tokens, kinds = (content[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    assert [pieces[number][0] for number in range(len(tokens))] == tokens
    assert [pieces[number][2] for number in range(len(tokens))] == kinds
    scores = [pieces[number][1] for number in range(len(tokens))]
    rebuilt = read(content | {"tokenizer.ggml.scores": scores})
    assert rebuilt.to_str() == backend.to_str()


def test_broken_lists_are_refused():
    content = metadata(["ab"], [-1.0], False)
    key = "tokenizer.ggml.{}".format
    with pytest.raises(UnsupportedModelError, match="265 tokens with 264 scores"):
        read(content | {key("scores"): content[key("scores")][1:]})
    with pytest.raises(UnsupportedModelError, match="no token 900"):
        read(content | {key("unknown_token_id"): 900})
    tokens = ["?" if token == "<0x0A>" else token for token in content[key("tokens")]]
    with pytest.raises(UnsupportedModelError, match="no token <0x0A> for a byte"):
        read(content | {key("tokens"): tokens})
    with pytest.raises(UnsupportedModelError, match="kind 'bert'; Graft rebuilds gpt2"):
        read(content | {key("model"): "bert"})


def train_backend(prefix):
    """A tokenizer as transformers has it for Llama 2 (with a prefix) or Gemma (without)."""
    replace = normalizers.Replace(" ", SPACE)
    start = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = start if prefix else replace
    special = ["<unk>", "<s>", "</s>", *BYTES]
    texts = ["the roofs of the town", "leaves  fall over the roof", "the  town é", "of old"] * 3
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    )
    content = json.loads(backend.to_str())
    content["added_tokens"] = []
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    backend.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in special[:3]])
    backend.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    steps += [decoders.Strip(content=" ", left=1, right=0)] * prefix
    backend.decoder = decoders.Sequence(steps)
    return backend


@pytest.mark.heavy
@pytest.mark.parametrize("prefix", [False, True])
def test_llama_cpp_reads_the_same_ids(prefix, tmp_path):
    import transformers

    backend = train_backend(prefix)
    rows = backend.get_vocab_size()
    their_model("llama", vocab_size=rows).save_pretrained(tmp_path / "theirs")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path / "theirs")
    importing.import_model(importing.open_model(tmp_path / "theirs"), tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    file = tmp_path / "model.gguf"
    writer.export_gguf(run, file)
    back = importing.load_tokenizer(files.open_file(file))
    running = server(file)  # as long as this name lives

    @settings(max_examples=100, deadline=None)
    @given(st.text(st.sampled_from("the rofslavn é\n\t🙂<s>▁"), max_size=40))
    @example("the  town\n\n\n of <s> leaves")
    def compare(text):
        ours = run.tokenizer.encode(text)
        assert back.encode(text) == ours
        question = json.dumps({"content": text, "add_special": False, "parse_special": False})
        request = urllib.request.Request(
            f"{running.listening_address}/tokenize",
            question.encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["tokens"] == ours

    compare()
    assert isinstance(back, Tokenizer) and back.roles == run.tokenizer.roles

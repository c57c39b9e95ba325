"""Preferences: what a pair and a labelled answer become in a row, and what is refused."""

import json

import numpy as np
import pytest

from research.batch import BAD, GOOD, MISMATCHED
from research.data.config import DataConfig
from research.data.pipeline import Pipeline
from research.data.sources import JsonlConfig
from research.objectives import Chat, LabelledAnswers, Preference, Supervised
from research.text.token_table import Ragged, TokenTable
from tests.objectives import cases

QUESTION, RIGHT, WRONG = "some words", "words.", "are"
WRITER = Supervised(template="Q: {prompt}\nA: ")
PAIR = {"prompt": QUESTION, "chosen": RIGHT, "rejected": WRONG}


def turns(*texts):
    roles = ("user", "assistant") * len(texts)
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]


def prepared(objective, records, window=96):
    """Examples of records as formats give them."""
    encoder = objective.encoder(cases.tokenizer(), window)
    for row, record in enumerate(records):
        encoder.add(record, f"row {row}")
    tokens, sizes = {}, {}
    for name, encoded in encoder.take().items():
        lengths = [len(ids) for ids in encoded.values]
        flat = np.asarray([i for ids in encoded.values for i in ids], encoder.types[name])
        tokens[name] = Ragged(flat, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
        sizes[name] = np.asarray(encoded.bytes)
    return objective.prepare(TokenTable("made", tokens, sizes), cases.tokenizer(), window)


def read(tmp_path, records, objective, **source):
    """The first batch of two rows of 128."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "made.jsonl").write_text(lines)
    sources = (JsonlConfig("made", str(tmp_path / "made.jsonl"), **source),)
    config = DataConfig(sources, 128, 2, objective)
    return Pipeline(config, cases.tokenizer(), tmp_path / "cache").batch(0)


def documents(batch, row=0):
    """Of each document of a row: what it reads, what of it is an answer, and its role."""
    result = []
    for segment in range(1, batch.segments[row].max() + 1):
        here = batch.segments[row] == segment
        is_said = here & (batch.roles[row] > 0)
        assert np.array_equal(batch.positions[row][here], np.arange(here.sum()))
        (role,) = set(batch.roles[row][is_said].tolist())
        assert np.array_equal(batch.weights[row][here] > 0, is_said[here] & (role != MISMATCHED))
        texts = [batch.tokens[row][here], batch.targets[row][is_said]]
        result.append((*map(cases.tokenizer().decode, texts), role))
    return result


def test_a_pair_is_two_documents_that_follow_each_other_each_with_its_prompt(tmp_path):
    others = [PAIR | {"prompt": f"words {n}"} for n in range(3)]
    batch = read(tmp_path, [PAIR, *others], Preference(WRITER))
    rows = [documents(batch, row) for row in range(2)]
    for row in rows:
        assert [role for *_, role in row] == [GOOD, BAD] * (len(row) // 2)
        for (text, answer, _), (other, bad, _) in zip(row[::2], row[1::2], strict=True):
            assert (answer, bad) == (RIGHT, WRONG)
            assert text.startswith("Q: ") and text.split("A: ")[0] == other.split("A: ")[0]
    assert max(map(len, rows)) > 2  # some row holds several pairs
    assert batch.reference is None


EXPLICIT = {"prompt": turns("a?"), "chosen": turns("a?", RIGHT)[1:]}
EXPLICIT["rejected"] = turns("a?", WRONG)[1:]


@pytest.mark.parametrize(
    ("objective", "record", "same"),
    [
        (
            Preference(Supervised(template="{prompt}")),
            {"chosen": "Q: some words A: words.", "rejected": "Q: some words A: are"},
            {"prompt": "Q: some words A:", "chosen": " words.", "rejected": " are"},
        ),
        (
            Preference(Chat()),
            {"chosen": turns("a?", RIGHT), "rejected": turns("a?", WRONG)},
            EXPLICIT,
        ),
        (
            Preference(Chat()),
            {"prompt": "a?", "chosen": turns("a?", RIGHT), "rejected": turns("a?", WRONG)},
            EXPLICIT | {"prompt": "a?"},
        ),
        (Preference(Chat()), {"prompt": "a?", "chosen": RIGHT, "rejected": WRONG}, EXPLICIT),
    ],
    ids=["text", "messages", "said twice", "text as messages"],
)
def test_a_prompt_may_be_what_both_sides_begin_with(tmp_path, objective, record, same):
    for folder, each in (("one", record), ("other", same)):
        (tmp_path / folder).mkdir()
        batch = read(tmp_path / folder, [each], objective)
        if folder == "one":
            first = batch
    assert np.array_equal(first.tokens, batch.tokens) and np.array_equal(first.roles, batch.roles)
    assert [role for *_, role in documents(batch)][:2] == [GOOD, BAD]


LABELLED = [
    {"prompt": "some", "completion": "words.", "label": True},
    {"prompt": "are", "completion": "some some", "label": False},
    {"prompt": "words", "completion": "are", "label": True},
]


def test_a_labelled_answer_has_the_answer_of_another_prompt_before_it(tmp_path):
    batch = read(tmp_path, LABELLED, LabelledAnswers(WRITER), format="labelled answers")
    answers = {}
    for row in range(2):
        row_documents = documents(batch, row)
        for (other_text, other, other_role), (text, answer, role) in zip(
            row_documents[::2], row_documents[1::2], strict=True
        ):
            prompt = text.removeprefix("Q: ").split("\n")[0]
            assert other_role == MISMATCHED
            assert other_text.split("A: ")[0] == text.split("A: ")[0]
            answers[prompt] = (answer, role, other)
    assert answers["some"] == ("words.", GOOD, "are")
    assert answers["are"] == ("some some", BAD, "words.")
    assert answers["words"] == ("are", GOOD, "some some")


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (
            {"chosen": RIGHT, "rejected": RIGHT, "prompt": "a"},
            "are equal, so that there is nothing",
        ),
        ({"chosen": " ", "rejected": WRONG, "prompt": "a"}, "'chosen' has no answer"),
        ({"chosen": RIGHT, "rejected": WRONG}, "no common beginning to be it"),
        ({"chosen": turns("a?", RIGHT), "rejected": WRONG}, "both be text, or both messages"),
        ({"chosen": turns("a?"), "rejected": turns("b?")}, "begin with no common message"),
        ({"chosen": turns("a?", RIGHT), "rejected": turns("a?", WRONG)}, r'of=dict\(kind="chat"\)'),
        ({"prompt": "a", "completion": "b"}, "there is no field 'chosen'"),
        (PAIR | {"score_chosen": 3}, "'score_chosen' would be lost"),
    ],
)
def test_pairs_that_say_nothing_are_refused_by_their_line(tmp_path, record, match):
    with pytest.raises(ValueError, match=rf"made.*(1|row 0)\b.*{match}"):
        read(tmp_path, [record], Preference(WRITER))


def test_equal_tokens_and_answers_too_long_are_refused_by_their_rows():
    long = PAIR | {"rejected": WRONG * 80}
    with pytest.raises(ValueError, match=r"the same tokens in 1 of 2 pairs \(row 1\)"):
        prepared(Preference(WRITER), [PAIR, PAIR | {"rejected": RIGHT}])
    with pytest.raises(ValueError, match=r"row 1: .*more than 48 tokens, half a row.*1 of 2"):
        prepared(Preference(WRITER), [PAIR, long])
    examples = prepared(Preference(WRITER, over_long=0.5), [PAIR, long])
    assert examples.lengths[0] > 0 == examples.lengths[1] and "1 over-long" in examples.note
    # a prompt that is cut alike before both answers may stay
    cut = PAIR | {"prompt": QUESTION * 20}
    examples = prepared(Preference(WRITER), [PAIR, cut])
    assert examples.truncated.tolist() == [False, True] and examples.lengths[1] > 0
    # one whose cut depends on the answer may not
    with pytest.raises(ValueError, match="cut unlike that of the other one"):
        prepared(Preference(WRITER), [PAIR, cut | {"rejected": WRONG + " some 😀😀😀😀😀"}])


@pytest.mark.parametrize(
    ("records", "match"),
    [
        ([{"prompt": "a", "chosen": "b"}], "one answer alone"),
        (
            [{"prompt": "a", "chosen": "b"}, {"prompt": "c", "chosen": "d"}],
            "all 2 answers are good",
        ),
        ([PAIR, PAIR], "this is a pair: use data.objective.kind"),
    ],
)
def test_labels_that_tell_nothing_apart_are_refused(records, match):
    with pytest.raises(ValueError, match=match):
        prepared(LabelledAnswers(WRITER), records)


def test_bad_answers_are_no_examples_of_other_objectives(tmp_path):
    for records, source in ((LABELLED, {"format": "labelled answers"}), ([PAIR] * 2, {})):
        with pytest.raises(ValueError, match="there is no field 'completion'"):
            read(tmp_path, records, WRITER, **source)

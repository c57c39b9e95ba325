"""What is shown is what `Pipeline.batch` holds, for every objective; faults are named by row."""

import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings

from research.data import checks
from research.data.config import DataConfig
from research.data.pipeline import Pipeline
from research.data.sources import JsonlConfig
from research.inspection import page as inspection_page
from research.inspection import rows as inspection
from research.inspection import terminal
from research.inspection.rows import (
    choose_rows,
    decode_characters,
    open_data,
    read_rows,
    token_spans,
)
from research.inspection.summarize import _completions, summarize
from research.methods import METHODS
from research.objectives import OBJECTIVES, Supervised
from research.objectives.ul2 import Denoiser
from tests.helpers.html_page import Page
from tests.objectives import cases
from tests.text import templates

# Settings under which the beginning of a text stays as it is.
GENTLE = {
    "fill_in_the_middle": {"share": 1e-9},
    "masked": {"rate": 0.01},
    "prefix_lm": {},
    "span_corruption": {"rate": 0.01, "mean_span": 1.0},
    "supervised": {"answer_tokens": 1},
    "ul2": {"denoisers": (Denoiser("[S]"),)},
}
# objectives whose examples are two documents each
ANSWERS = ("preference", "labelled_answers")
WHOLE = ("supervised", "chat", *ANSWERS, "rollouts")
SCRIPT = "<script>alert('&')</script>"


def _pipeline(folder, objective, texts, length=48, **settings):
    rows = [{"text": text} for text in texts]
    if objective in ("supervised", "chat"):
        rows = [{"prompt": text[:20], "completion": text[20:] or "a"} for text in texts]
    if objective in ANSWERS:
        pairs = [(text[:20] or "b", text[20:].strip() or "a") for text in texts]
        rows = [{"prompt": a, "completion": b, "label": i % 2} for i, (a, b) in enumerate(pairs)]
    if objective == "preference":
        rows = [{"prompt": a, "chosen": b, "rejected": f"{b} b"} for a, b in pairs]
    if objective in ("classification", "regression"):
        rows = [{"text": text, "label": len(text) % 2} for text in texts]
    if objective == "rollouts":
        rows = [_rollout(text[:20], text[20:]) for text in texts]
    (folder / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    forms = {"labelled_answers": "labelled answers", "rollouts": "rollouts"}
    form = forms.get(objective)
    source = JsonlConfig("made", str(folder / "made.jsonl"), format=form)
    config = DataConfig((source,), length, 4, OBJECTIVES[objective](**settings))
    with checks.collected():
        return Pipeline(config, cases.tokenizer(), folder / "cache")


def _rollout(prompt, answer):
    tokenizer = cases.tokenizer()
    return {
        "prompt": prompt,
        "answer": answer,
        "prompt_ids": [tokenizer.begin_id, *tokenizer.encode(prompt)],
        "answer_ids": [*tokenizer.encode(answer), tokenizer.end_id],
        "advantage": 0.5,
    }


def _rebuilt(row, pad, has_classes):
    """The row's arrays, from nothing but what is shown."""
    fields = {name: np.zeros(row.length, np.int64) for name in ("segments", "positions")}
    fields |= {"tokens": np.full(row.length, pad), "targets": np.zeros(row.length, np.int64)}
    fields |= {name: np.zeros(row.length, bool) for name in ("weights", "prefix")}
    for segment in row.segments:
        before = None
        for token in segment.tokens:
            target_index = token.index if segment.in_place else before
            if target_index is not None:
                target = token.target if segment.in_place else token.id
                if segment.label is not None:  # a class, or a number beside the targets
                    target = int(segment.label) * token.is_target * has_classes
                fields["targets"][target_index] = target
                fields["weights"][target_index] = token.is_target
            if token.index is not None:
                fields["tokens"][token.index] = token.id
                fields["segments"][token.index] = segment.number
                fields["positions"][token.index] = token.position
                fields["prefix"][token.index] = token.in_prefix
            before = token.index
    return fields


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@given(cases.TEXTS)
@settings(max_examples=8)
def test_what_is_shown_is_what_the_batch_holds(tmp_path_factory, objective, texts):
    folder = tmp_path_factory.mktemp("shown")
    fitting = {"over_long": 0.99} if objective in WHOLE else {}
    texts = ["some words", "are", *texts]
    pipeline, tokenizer = _pipeline(folder, objective, texts, **fitting), cases.tokenizer()
    for step in (0, 3):
        batch, rows = pipeline.batch(step), read_rows(pipeline, step)
        for row in rows:
            rebuilt_fields = _rebuilt(row, tokenizer.pad_id, objective == "classification")
            for name, values in rebuilt_fields.items():
                array = getattr(batch, name)
                expected = np.zeros_like(values) if array is None else array[row.number]
                expected = expected > 0 if name == "weights" else expected
                assert np.array_equal(values, expected), name
            for segment in row.segments:
                assert segment.source == "made:train"
                _check_spans(segment, tokenizer)


def _check_spans(segment, tokenizer):
    """Characters and spans hold every token once, and spell the segment's text."""
    ids = [token.id for token in segment.tokens]
    characters = decode_characters(ids, tokenizer)
    assert "".join(text for *_, text in characters) == tokenizer.decode(ids, special=True)
    edges = [first for first, *_ in characters] + [len(ids)]
    assert edges == [0, *(last for _, last, _ in characters)]
    spans = list(token_spans(segment, tokenizer))
    assert tuple(token for span in spans for token in span.tokens) == segment.tokens
    for span in spans:
        assert {token.is_target for token in span.tokens} == {span.is_target}
        assert {token.id in tokenizer.special_ids for token in span.tokens} == {span.is_special}
    text = "".join(span.text for span in spans)
    assert "\ufffd" in text or text == tokenizer.decode(ids, special=True)


def _marks(text):
    """Trained text, between the marks that stand for color."""
    return re.findall("⟦(.*?)⟧", text, re.DOTALL)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_each_segment_names_the_row_it_comes_from(tmp_path, objective):
    texts = [f"#{n} some words. " + "are some words. " * (n % 4) for n in range(30)]
    pipeline = _pipeline(tmp_path, objective, texts, 120, **GENTLE.get(objective, {}))
    source_rows = set()
    for step in range(30):
        for segment in (s for row in read_rows(pipeline, step) for s in row.segments):
            if segment.start:  # of a document that was cut
                continue
            targets = [t.id if t.target is None else t.target for t in segment.tokens]
            assert re.search(r"#(\d+)", cases.tokenizer().decode(targets))[1] == str(segment.row)
            source_rows.add(segment.row)
    assert source_rows == set(range(30))


def test_a_later_piece_of_a_document_says_where_it_begins(tmp_path):
    text = "".join(f"{n} some words. " for n in range(60))
    pipeline, tokenizer = _pipeline(tmp_path, "causal", [text, "other"]), cases.tokenizer()
    document = [*tokenizer.encode(text), tokenizer.end_id]
    starts = set()
    for segment in (s for row in read_rows(pipeline, 0) for s in row.segments if s.row == 0):
        ids = [token.id for token in segment.tokens[1:]]
        assert document[segment.start : segment.start + len(ids)] == ids
        starts.add(segment.start)
    assert len(starts) > 1


def test_without_color_marks_stand_around_what_is_trained_and_special(tmp_path):
    pipeline = _pipeline(
        tmp_path, "supervised", ["some words <|end|> x\x1b[31m", "b"], template="Q: {prompt}\nA: "
    )
    tokenizer = cases.tokenizer()
    rows = [row for step in range(2) for row in read_rows(pipeline, step)]
    texts = [terminal.show_row(row, tokenizer) for row in rows]
    one = next(text for text in texts if "made:train, row 0;" in text)
    assert "\x1b" not in "".join(texts) and "\\x1b[31m" in one
    # The text that spells a special token is text; the token itself is marked.
    assert "«<|begin|>»Q: some words <|end|> x↵\n    A: ⟦" in one
    assert set(_marks(one)) == {"a«<|end|>»", "\\x1b[31m«<|end|>»"}
    color_text = terminal.show_row(rows[0], tokenizer, color=True)
    assert "\x1b[" in color_text and "⟦" not in color_text
    bare = re.sub("\x1b\\[[0-9;]*m", "", color_text)
    assert re.sub("[⟦⟧«»‖]", "", texts[0]) == bare
    edges = terminal.show_row(rows[0], tokenizer, boundaries=True)
    count = sum(len(list(token_spans(s, tokenizer))) - 1 for s in rows[0].segments)
    assert edges.count("│") == count and edges.replace("│", "") == texts[0]


def test_a_prefix_and_what_is_said_in_place_are_shown(tmp_path):
    tokenizer = cases.tokenizer()
    texts = ["some words. are some", "words are some words."]
    (row, *_) = read_rows(_pipeline(tmp_path, "masked", texts), 0)
    text = terminal.show_row(row, tokenizer)
    assert "all see both ways" in text and re.search("⟦.+→.+⟧", text)
    (row, *_) = read_rows(_pipeline(tmp_path, "prefix_lm", texts, shortest=0.5, longest=0.5), 0)
    text = terminal.show_row(row, tokenizer)
    assert re.search(r"the first \d+ see both ways", text)
    assert text.count("‖") == len(row.segments)


@pytest.fixture(scope="module")
def run_data(world, tmp_path_factory):
    """Data of a run on questions with faults planted in them."""
    folder = tmp_path_factory.mktemp("faults")
    colors = ("red", "green", "blue")
    rows = [
        {"prompt": f"roof {n} on {n * 7} walls of {n} houses", "completion": colors[n % 3]}
        for n in range(30)
    ]
    rows[11] = rows[4]
    rows.append({"prompt": f"{SCRIPT} é", "completion": "red"})
    test_rows = [{"prompt": "ROOF 5 on 35 walls of 5 houses", "completion": " blue"}]
    test_rows += [{"prompt": f"no {n}", "completion": "white"} for n in range(3)]
    test_rows += [{**rows[8], "prompt": "a " + rows[8]["prompt"] + " by the sea"}]
    for split, lines in (("train", rows), ("test", test_rows)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"made-{split}.jsonl").write_text(text)
    source = JsonlConfig("made", str(folder / "made-{split}.jsonl"))
    data = dataclasses.replace(
        world.questions(), sources=(source,), sequence_length=64, objective=Supervised()
    )
    return open_data(world.experiment(9, data=data), ["test"])


def test_the_summary_counts_what_was_planted(run_data):
    train, test = summarize(run_data)
    assert train.examples.rows == 31
    assert (train.repeats.repeated, train.repeats.repeated_rows) == (1, [(11, 4)])
    assert train.plan.epochs == run_data.pipeline.statistics(9)["made"].epochs
    assert [label.text for label in train.labels] == ["red", "green", "blue"]
    assert sum(label.count for label in train.labels) == 31
    assert sum(label.share for label in train.labels) == pytest.approx(1)
    for one in (train, test):
        examples, histogram = one.examples, one.examples.histogram
        assert sum(histogram.counts) == examples.examples
        assert histogram.edges[0] == examples.lengths["smallest"]
        assert histogram.edges[-1] == examples.lengths["largest"] + 1
    overlap = test.training_overlap
    assert overlap.shared_rows == [(0, "made:train", 5)] and overlap.shared == 1
    assert overlap.near_shared == 0 and overlap.nearest[0][:3] == (4, "made:train", 8)
    text = terminal.show_summary(run_data, [train, test])
    assert "row 0 is row 5 of made:train" in text and "training would refuse" in text
    assert "never trained: ['white', ' blue']" in text
    assert len(run_data.faults) == 1


def test_prompts_that_are_one_after_the_cut_are_found(tmp_path, world):
    prompts = ["so long a beginning that all else of it is cut off " + str(n) for n in range(4)]
    rows = [{"prompt": p, "completion": c} for p, c in zip(prompts, "abaa", strict=True)]
    rows += [{"prompt": "short", "completion": "b"}]
    test_rows = [
        {"prompt": prompts[0] + "!", "completion": "a"},
        {"prompt": "x", "completion": "b"},
    ]
    for split, lines in (("train", rows), ("test", test_rows)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"made-{split}.jsonl").write_text(text)
    source = JsonlConfig("made", str(tmp_path / "made-{split}.jsonl"))
    data = dataclasses.replace(world.questions(), sources=(source,))
    train, test = summarize(open_data(world.experiment(9, data=data), ["test"]))
    assert train.completions.contradictions == 1
    assert train.completions.contradicting_rows == [(1, 0)]
    assert test.prompt_overlap.read_alike_rows == [(0, "made:train", 0)]
    assert test.training_overlap.shared == 0
    findings = terminal.findings([train, test])
    assert any("another completion, once cut: rows 1 (like 0)" in line for line in findings)
    assert any("trained on, once cut: rows 0 (like 0 of" in line for line in findings)


def test_equal_prompts_with_other_completions_are_found_among_free_answers(tmp_path, world):
    long = "so long a beginning that all else of it is cut off "
    prompts = [f"notice {n}" for n in range(9)] + ["notice 4", "notice 7", long + "1", long + "2"]
    rows = [{"prompt": p, "completion": f"free {n}"} for n, p in enumerate(prompts)]
    test_rows = [{"prompt": "notice 3", "completion": "other"}]
    for split, lines in (("train", rows), ("test", test_rows)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"made-{split}.jsonl").write_text(text)
    source = JsonlConfig("made", str(tmp_path / "made-{split}.jsonl"))
    data = dataclasses.replace(world.questions(), sources=(source,))
    train, test = summarize(open_data(world.experiment(9, data=data), ["test"]))
    assert train.completions.contradicting_rows == [(9, 4), (10, 7), (12, 11)]
    assert (train.completions.completions, train.completions.contradictions_cut) == (13, 1)
    assert train.labels is None and "labels" not in train.to_json()
    assert test.prompt_overlap.read_alike_cut == 0
    findings = "\n".join(terminal.findings([train, test]))
    assert "another completion, 1 of them once cut: rows 9 (like 4), 10 (like 7)" in findings
    assert "1 prompts are read exactly like one that is trained on: rows 0 (like 3 of" in findings


def test_rows_are_found_by_their_number_and_by_their_text(run_data):
    (row,) = choose_rows(run_data, 1, row=17, source="made")
    assert 17 in [segment.row for segment in row.segments]
    (row,) = choose_rows(run_data, 1, text="roof 23 on")
    assert any(segment.row == 23 for segment in row.segments)
    assert [(row.step, row.number) for row in choose_rows(run_data, 9, first_step=2)] == [
        *((2, n) for n in range(8)),
        (3, 0),
    ]
    for wrong, message in (
        ({"row": 31}, "no row 31: the longest source has 31"),
        ({"source": "mad"}, "no source 'mad'"),
        ({"first_step": 9}, "no step 9: the run has 9"),
        ({"text": "nowhere"}, "holds the text 'nowhere'"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_rows(run_data, 1, **wrong)


def test_the_page_is_whole_escaped_and_makes_no_request(run_data, tmp_path):
    summaries = summarize(run_data)
    rows = choose_rows(run_data, 1, row=30)
    path = inspection_page.write(tmp_path / "page.html", run_data, rows, summaries, SCRIPT)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and set(page.links) == {"data:,"}
    assert not re.search(r"https?://|url\(|@import", text)
    page_text = page.text
    assert page_text.count(SCRIPT) >= 3, "in the title, the heading and the row"
    for segment in rows[0].segments:
        assert terminal.describe(segment) in page_text
    spans = sum(len(list(token_spans(s, run_data.tokenizer))) for s in rows[0].segments)
    assert text.count('title="id ') == spans
    assert "Training would refuse this data, for one reason." in page_text


def test_a_row_as_json_has_its_text_and_what_is_trained(run_data):
    (row,) = choose_rows(run_data, 1, row=17)
    segments = inspection.to_json(row, run_data.tokenizer)["segments"]
    (segment,) = [each for each in segments if each["row"] == 17]
    assert "roof 17 on" in segment["text"] and segment["trained_text"] == "blue<|end|>"
    json.dumps(segment)


def test_the_adapter_of_a_row_is_named(world, tmp_path):
    part = METHODS["lora"](rank=2)
    bank = METHODS["bank"](of=part, names=("law", "style"))
    sources = tuple(
        dataclasses.replace(world.questions().sources[0], name=name, adapter=name)
        for name in ("law", "style")
    )
    data = dataclasses.replace(world.questions(), sources=sources)
    bank_data = open_data(world.tuning(3, data=data, method=bank))
    for row in choose_rows(bank_data, 24):
        assert row.segments[0].source == f"{row.adapter}:train"
        assert f"adapter '{row.adapter}'" in terminal.show_row(row, bank_data.tokenizer)


def test_histograms_leave_only_nothing_blank():
    assert terminal.histogram_bars([0, 1, 1000]) == " ▁█"


def test_several_examples_of_a_conversation_are_shown_with_what_each_trains(tmp_path):
    exchanges = [[templates.user(f"q{n}"), templates.assistant(f"a{n}")] for n in range(3)]
    record = {"messages": sum(exchanges, [])}
    (tmp_path / "talk.jsonl").write_text(json.dumps(record) + "\n")
    source = JsonlConfig("talk", str(tmp_path / "talk.jsonl"))
    objective = OBJECTIVES["chat"](template=templates.THINKING)
    tokenizer = templates.tokenizer()
    pipeline = Pipeline(DataConfig((source,), 256, 2, objective), tokenizer, tmp_path / "cache")
    segments = [
        inspection.to_json(row, tokenizer)["segments"] for row in read_rows(pipeline, 0, ())
    ]
    texts = {each["trained_text"]: each["text"] for row in segments for each in row}
    assert {each["row"] for row in segments for each in row} == {0}
    thoughts = "<think>\n\n</think>\n\n"
    assert sorted(texts) == [f"{thoughts}a{n}<|im_end|>" for n in range(3)]
    assert all(
        text.endswith("<|im_start|>assistant\n" + trained) for trained, text in texts.items()
    )
    examples = pipeline.rows["talk"].examples
    statistics, prompts = _completions(examples, tokenizer)
    assert statistics.completions == 3 and {row for row, _ in prompts.values()} == {0}

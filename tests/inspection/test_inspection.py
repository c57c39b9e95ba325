"""What is shown is what `Pipeline.batch` holds, for every objective; faults are named by row."""

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings

from research.data import checks
from research.data.config import DataConfig
from research.data.pipeline import Pipeline
from research.data.sources import SourceConfig
from research.inspection import page as inspection_page
from research.inspection import rows as inspection
from research.inspection import summary, terminal
from research.inspection.rows import choose_rows, open_data, parts, read_rows, spell
from research.methods import METHODS
from research.objectives import OBJECTIVES, Supervised
from tests.objectives import cases

# Settings under which the beginning of a text stays as it is.
GENTLE = {
    "fill_in_the_middle": {"share": 1e-9},
    "masked": {"rate": 0.01},
    "prefix_lm": {},
    "span_corruption": {"rate": 0.01, "mean_span": 1.0},
    "supervised": {"answer_tokens": 1},
}
SCRIPT = "<script>alert('&')</script>"


def _pipeline(folder, objective, texts, length=48, **settings):
    rows = [{"text": text, "prompt": text[:20], "completion": text[20:] or "a"} for text in texts]
    (folder / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    form = "prompt+completion" if objective in ("supervised", "chat") else "text"
    source = SourceConfig("made", "jsonl", str(folder / "made.jsonl"), format=form)
    config = DataConfig((source,), length, 4, OBJECTIVES[objective](**settings))
    with checks.collected():
        return Pipeline(config, cases.tokenizer(), folder / "cache")


def _rebuilt(row, pad):
    """The row's arrays, from nothing but what is shown."""
    fields = {name: np.zeros(row.length, np.int64) for name in ("segments", "positions")}
    fields |= {name: np.full(row.length, pad) for name in ("tokens", "targets")}
    fields |= {name: np.zeros(row.length, bool) for name in ("weights", "prefix")}
    for segment in row.segments:
        before = None
        for unit in segment.units:
            said_at = unit.place if segment.in_place else before
            if said_at is not None:
                fields["targets"][said_at] = unit.said if segment.in_place else unit.id
                fields["weights"][said_at] = unit.trained
            if unit.place is not None:
                fields["tokens"][unit.place] = unit.id
                fields["segments"][unit.place] = segment.number
                fields["positions"][unit.place] = unit.position
                fields["prefix"][unit.place] = unit.prefix
            before = unit.place
    return fields


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@given(cases.TEXTS)
@settings(max_examples=8)
def test_what_is_shown_is_what_the_batch_holds(tmp_path_factory, objective, texts):
    folder = tmp_path_factory.mktemp("shown")
    fitting = {"over_long": 0.99} if objective in ("supervised", "chat") else {}
    texts = ["some words", *texts]
    pipeline, words = _pipeline(folder, objective, texts, **fitting), cases.tokenizer()
    for step in (0, 3):
        batch, rows = pipeline.batch(step), read_rows(pipeline, step)
        for row in rows:
            for name, values in _rebuilt(row, words.pad_id).items():
                held = getattr(batch, name)
                held = np.zeros_like(values) if held is None else held[row.number]
                held = held > 0 if name == "weights" else held
                assert np.array_equal(values, held), name
            for segment in row.segments:
                ids = [unit.id for unit in segment.units]
                assert segment.source == "made:train"
                spelt = spell(ids, words)
                assert "".join(text for *_, text in spelt) == words.decode(ids, special=True)
                edges = [first for first, *_ in spelt] + [len(ids)]
                assert edges == [0, *(last for _, last, _ in spelt)]
                shown = list(parts(segment, words))
                assert tuple(unit for part in shown for unit in part.units) == segment.units
                for part in shown:
                    assert {unit.trained for unit in part.units} == {part.trained}
                    special = {unit.id in words.special_ids for unit in part.units}
                    assert special == {part.special}
                text = "".join(part.text for part in shown)
                assert "\ufffd" in text or text == words.decode(ids, special=True)


def _marks(shown):
    """Trained text, between the marks that stand for colour."""
    return re.findall("⟦(.*?)⟧", shown, re.DOTALL)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_each_segment_names_the_row_it_comes_from(tmp_path, objective):
    texts = [f"#{n} some words. " + "are some words. " * (n % 4) for n in range(30)]
    pipeline = _pipeline(tmp_path, objective, texts, 120, **GENTLE.get(objective, {}))
    seen = set()
    for step in range(30):
        for segment in (s for row in read_rows(pipeline, step) for s in row.segments):
            if segment.start:  # of a document that was cut
                continue
            said = [u.id if u.said is None else u.said for u in segment.units]
            assert re.search(r"#(\d+)", cases.tokenizer().decode(said))[1] == str(segment.row)
            seen.add(segment.row)
    assert seen == set(range(30))


def test_a_later_piece_of_a_document_says_where_it_begins(tmp_path):
    text = "".join(f"{n} some words. " for n in range(60))
    pipeline, words = _pipeline(tmp_path, "causal", [text, "other"]), cases.tokenizer()
    document = [*words.encode(text), words.end_id]
    starts = set()
    for segment in (s for row in read_rows(pipeline, 0) for s in row.segments if s.row == 0):
        said = [unit.id for unit in segment.units[1:]]
        assert document[segment.start : segment.start + len(said)] == said
        starts.add(segment.start)
    assert len(starts) > 1


def test_without_colour_marks_stand_around_what_is_trained_and_special(tmp_path):
    pipeline = _pipeline(
        tmp_path, "supervised", ["some words <|end|> x\x1b[31m", "b"], template="Q: {prompt}\nA: "
    )
    words = cases.tokenizer()
    rows = [row for step in range(2) for row in read_rows(pipeline, step)]
    shown = [terminal.show_row(row, words) for row in rows]
    one = next(text for text in shown if "made:train, row 0;" in text)
    assert "\x1b" not in "".join(shown) and "\\x1b[31m" in one
    # The text that spells a special token is text; the token itself is marked.
    assert "«<|begin|>»Q: some words <|end|> x↵\n    A: ⟦" in one
    assert set(_marks(one)) == {"a«<|end|>»", "\\x1b[31m«<|end|>»"}
    coloured = terminal.show_row(rows[0], words, colour=True)
    assert "\x1b[" in coloured and "⟦" not in coloured
    bare = re.sub("\x1b\\[[0-9;]*m", "", coloured)
    assert re.sub("[⟦⟧«»‖]", "", shown[0]) == bare
    edges = terminal.show_row(rows[0], words, boundaries=True)
    count = sum(len(list(parts(s, words))) - 1 for s in rows[0].segments)
    assert edges.count("│") == count and edges.replace("│", "") == shown[0]


def test_a_prefix_and_what_is_said_in_place_are_shown(tmp_path):
    words = cases.tokenizer()
    texts = ["some words. are some", "words are some words."]
    (row, *_) = read_rows(_pipeline(tmp_path, "masked", texts), 0)
    shown = terminal.show_row(row, words)
    assert "all see both ways" in shown and re.search("⟦.+→.+⟧", shown)
    (row, *_) = read_rows(_pipeline(tmp_path, "prefix_lm", texts, shortest=0.5, longest=0.5), 0)
    shown = terminal.show_row(row, words)
    assert re.search(r"the first \d+ see both ways", shown)
    assert shown.count("‖") == len(row.segments)


@pytest.fixture(scope="module")
def opened(world, tmp_path_factory):
    """(experiment -> its opened data, folder): questions with faults planted in them."""
    folder = tmp_path_factory.mktemp("faults")
    colours = ("red", "green", "blue")
    rows = [
        {"prompt": f"roof {n} on {n * 7} walls of {n} houses", "completion": colours[n % 3]}
        for n in range(30)
    ]
    rows[11] = rows[4]
    rows.append({"prompt": f"{SCRIPT} é", "completion": "red"})
    held = [{"prompt": "ROOF 5 on 35 walls of 5 houses", "completion": " blue"}]
    held += [{"prompt": f"no {n}", "completion": "white"} for n in range(3)]
    held += [{**rows[8], "prompt": "a " + rows[8]["prompt"] + " by the sea"}]
    for split, lines in (("train", rows), ("test", held)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"made-{split}.jsonl").write_text(text)
    source = SourceConfig("made", "jsonl", str(folder / "made-{split}.jsonl"))
    data = dataclasses.replace(
        world.questions(), sources=(source,), sequence_length=64, objective=Supervised()
    )
    return open_data(world.experiment(9, data=data), ["test"])


def test_the_summary_counts_what_was_planted(opened):
    train, test = summary.summarise(opened)
    assert (train["rows"], train["repeated"], train["repeated_rows"]) == (31, 1, [[11, 4]])
    assert train["epochs"] == opened.pipeline.statistics(9)["made"]["epochs"]
    assert [label["text"] for label in train["labels"]] == ["red", "green", "blue"]
    assert sum(label["count"] for label in train["labels"]) == 31
    assert sum(label["share"] for label in train["labels"]) == pytest.approx(1)
    for one in (train, test):
        assert sum(one["histogram"]["counts"]) == one["examples"]
        assert one["histogram"]["edges"][0] == one["lengths"]["smallest"]
        assert one["histogram"]["edges"][-1] == one["lengths"]["largest"] + 1
    assert test["shared_rows"] == [[0, "made:train", 5]] and test["shared"] == 1
    assert test["near_shared"] == 0 and test["nearest"][0][:3] == [4, "made:train", 8]
    said = terminal.show_summary(opened, [train, test])
    assert "row 0 is row 5 of made:train" in said and "training would refuse" in said
    assert "never trained: ['white', ' blue']" in said
    assert len(opened.faults) == 1


def test_prompts_that_are_one_after_the_cut_are_found(tmp_path, world):
    prompts = ["so long a beginning that all else of it is cut off " + str(n) for n in range(4)]
    rows = [{"prompt": p, "completion": c} for p, c in zip(prompts, "abaa", strict=True)]
    rows += [{"prompt": "short", "completion": "b"}]
    held = [{"prompt": prompts[0] + "!", "completion": "a"}, {"prompt": "x", "completion": "b"}]
    for split, lines in (("train", rows), ("test", held)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"made-{split}.jsonl").write_text(text)
    source = SourceConfig("made", "jsonl", str(tmp_path / "made-{split}.jsonl"))
    data = dataclasses.replace(world.questions(), sources=(source,))
    train, test = summary.summarise(open_data(world.experiment(9, data=data), ["test"]))
    assert train["contradictions"] == 1 and train["contradicting_rows"] == [[1, 0]]
    assert test["read_alike_rows"] == [[0, "made:train", 0]] and test["shared"] == 0
    said = terminal.findings([train, test])
    assert any("another completion, once cut: rows 1 (like 0)" in line for line in said)
    assert any("trained on, once cut: rows 0 (like 0 of" in line for line in said)


def test_equal_prompts_with_other_completions_are_found_among_free_answers(tmp_path, world):
    long = "so long a beginning that all else of it is cut off "
    prompts = [f"notice {n}" for n in range(9)] + ["notice 4", "notice 7", long + "1", long + "2"]
    rows = [{"prompt": p, "completion": f"free {n}"} for n, p in enumerate(prompts)]
    held = [{"prompt": "notice 3", "completion": "other"}]
    for split, lines in (("train", rows), ("test", held)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"made-{split}.jsonl").write_text(text)
    source = SourceConfig("made", "jsonl", str(tmp_path / "made-{split}.jsonl"))
    data = dataclasses.replace(world.questions(), sources=(source,))
    found = summary.summarise(open_data(world.experiment(9, data=data), ["test"]))
    assert found[0]["contradicting_rows"] == [[9, 4], [10, 7], [12, 11]]
    assert (found[0]["completions"], found[0]["contradictions_cut"]) == (13, 1)
    assert "labels" not in found[0] and found[1]["read_alike_cut"] == 0
    said = "\n".join(terminal.findings(found))
    assert "another completion, 1 of them once cut: rows 9 (like 4), 10 (like 7)" in said
    assert "1 prompts are read exactly like one that is trained on: rows 0 (like 3 of" in said


def test_rows_are_found_by_their_number_and_by_their_text(opened):
    (row,) = choose_rows(opened, 1, row=17, source="made")
    assert 17 in [segment.row for segment in row.segments]
    (row,) = choose_rows(opened, 1, text="roof 23 on")
    assert any(segment.row == 23 for segment in row.segments)
    assert [(row.step, row.number) for row in choose_rows(opened, 9, first=2)] == [
        *((2, n) for n in range(8)),
        (3, 0),
    ]
    for wrong, message in (
        ({"row": 31}, "no row 31: the longest source has 31"),
        ({"source": "mad"}, "no source 'mad'"),
        ({"first": 9}, "no step 9: the run has 9"),
        ({"text": "nowhere"}, "holds the text 'nowhere'"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_rows(opened, 1, **wrong)


class _Page(html.parser.HTMLParser):
    """Checks that elements are closed in order, and collects what is in them."""

    VOID = ("meta", "link", "input", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("href", "src", "action", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_is_whole_escaped_and_asks_for_nothing(opened, tmp_path):
    summaries = summary.summarise(opened)
    rows = choose_rows(opened, 1, row=30)
    path = inspection_page.write(tmp_path / "page.html", opened, rows, summaries, SCRIPT)
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    assert "script" not in page.tags and set(page.links) == {"data:,"}
    assert not re.search(r"https?://|url\(|@import", text)
    shown = "".join(page.texts)
    assert shown.count(SCRIPT) >= 3, "in the title, the heading and the row"
    for segment in rows[0].segments:
        assert terminal.describe(segment) in shown
    spans = sum(len(list(parts(s, opened.tokenizer))) for s in rows[0].segments)
    assert text.count('title="id ') == spans
    assert "Training would refuse this data, for one reason." in shown


def test_a_row_as_json_has_its_text_and_what_is_trained(opened):
    (row,) = choose_rows(opened, 1, row=17)
    (made,) = [s for s in inspection.to_json(row, opened.tokenizer)["segments"] if s["row"] == 17]
    assert "roof 17 on" in made["text"] and made["trained_text"] == "blue<|end|>"
    json.dumps(made)


def test_the_adapter_of_a_row_is_named(world, tmp_path):
    part = METHODS["lora"](rank=2)
    bank = METHODS["bank"](of=part, names=("law", "style"))
    sources = tuple(
        dataclasses.replace(world.questions().sources[0], name=name, adapter=name)
        for name in ("law", "style")
    )
    data = dataclasses.replace(world.questions(), sources=sources)
    found = open_data(world.tuning(3, data=data, method=bank))
    for row in choose_rows(found, 24):
        assert row.segments[0].source == f"{row.adapter}:train"
        assert f"adapter '{row.adapter}'" in terminal.show_row(row, found.tokenizer)


def test_histograms_leave_only_nothing_blank():
    assert terminal.bars([0, 1, 1000]) == " ▁█"

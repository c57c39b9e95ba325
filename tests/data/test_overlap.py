"""Equal rows are found, each with the first of its kind, as comparing all pairs would."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data import overlap
from research.data.sources import JsonlConfig
from research.objectives import OBJECTIVES
from tests.objectives import cases

HASHES = st.lists(st.integers(0, 6), max_size=12).map(lambda x: np.asarray(x, np.uint64))


@given(HASHES, st.lists(HASHES, min_size=1, max_size=3))
def test_shared_rows_are_those_that_comparing_all_pairs_finds(hashes, others):
    matches = overlap.find_shared(hashes, others)
    expected = []
    for row, one in enumerate(hashes):
        places = [(p, r) for p, other in enumerate(others) for r, two in enumerate(other)
                  if one == two != 0]  # fmt: skip
        expected += [(row, *min(places))] if places else []
    assert list(zip(matches.rows, matches.places, matches.others, strict=True)) == expected


@given(HASHES)
def test_repeated_rows_are_all_but_the_first_of_their_kind(hashes):
    matches = overlap.find_repeated(hashes)
    first_rows: dict[int, int] = {}
    expected = []
    for row, one in enumerate(hashes.tolist()):
        if one and first_rows.setdefault(one, row) != row:
            expected.append((row, first_rows[one]))
    assert list(zip(matches.rows, matches.others, strict=True)) == expected


@given(st.text(), st.sampled_from([str.upper, str.lower, lambda t: f"  {t}\n", str.casefold]))
def test_case_and_space_do_not_tell_rows_apart(text, change):
    if text.upper().casefold() == text.casefold():  # letters whose upper case folds otherwise
        assert overlap.normalize(change(text)) == overlap.normalize(text)
    assert overlap.normalize(overlap.normalize(text)) == overlap.normalize(text)


@pytest.mark.parametrize("objective", ["causal", "supervised", "chat"])
def test_hashes_are_of_what_the_objective_reads_and_kept(tmp_path, objective):
    rows = [{"text": "a b", "prompt": "a", "completion": "b", "other": n} for n in range(2)] + [
        {"text": " A  B", "prompt": "a b", "completion": "", "other": 0}
    ]
    path = tmp_path / "made.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    unused = ("other",) if objective == "causal" else ("other", "text")
    form = "text" if objective == "causal" else "prompt+completion"
    source = JsonlConfig("made", str(path), format=form, unused_fields=unused)
    hashes = [
        overlap.hash_rows(source, "train", OBJECTIVES[objective](), cases.tokenizer(), tmp_path)
        for _ in "12"
    ]
    assert np.array_equal(*hashes)
    assert (hashes[0][0] == hashes[0][1]) and (hashes[0][0] == hashes[0][2]) == (
        objective == "causal"
    )


def test_rows_without_text_are_equal_to_none(tmp_path):
    path = tmp_path / "made.jsonl"
    path.write_text('{"text": ""}\n{"text": " \\n"}\n{"text": "a"}\n')
    source = JsonlConfig("made", str(path))
    hashes = overlap.hash_rows(source, "train", OBJECTIVES["causal"](), cases.tokenizer(), tmp_path)
    assert not hashes[:2].any() and not len(overlap.find_repeated(hashes))

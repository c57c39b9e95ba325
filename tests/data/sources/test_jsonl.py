"""Random access to the lines of several files."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research.data.sources import JsonlConfig, open_source


@given(st.lists(st.lists(st.text(max_size=9), max_size=4), min_size=1, max_size=4), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_line_of_any_file_is_found_in_any_order(tmp_path, parts, data):
    for old in tmp_path.iterdir():
        old.unlink()
    for number, texts in enumerate(parts):
        lines = [
            json.dumps({"text": text}) + data.draw(st.sampled_from("\n\r\t")) for text in texts
        ]
        content = "\n".join(["", *lines, ""]) if lines else ""
        (tmp_path / f"{number}.jsonl").write_text(content, encoding="utf-8", newline="")
    source = open_source(JsonlConfig("a", str(tmp_path / "*.jsonl")))
    expected = [text for texts in parts for text in texts]
    assert len(source) == len(expected)
    for index in data.draw(st.permutations(range(len(expected)))):
        assert source[index] == {"text": expected[index]}


def test_a_broken_line_names_its_own_file_and_line(tmp_path):
    (tmp_path / "1.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "2.jsonl").write_text('\n{"text": "b"}\n{"text": \n')
    source = open_source(JsonlConfig("a", str(tmp_path / "*.jsonl")))
    with pytest.raises(ValueError, match=r"2\.jsonl:3: not a line of JSON"):
        source[2]
    with pytest.raises(ValueError, match=r"2\.jsonl:3: not a line of JSON"):
        source[-1]
    with pytest.raises(IndexError):
        source[3]


def test_a_key_that_appears_twice_is_refused_with_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "x", "text": "y"}\n{"b": [{"c": 1, "c": 1}]}\n')
    source = open_source(JsonlConfig("a", str(path)))
    assert source[0]["text"] == "a"
    for index, name in ((1, "text"), (2, "c")):
        with pytest.raises(ValueError, match=rf"a\.jsonl:{index + 1}: .*'{name}' appears twice"):
            source[index]

"""The text of an answer that is shown as its tokens come."""

import pytest

from research.serving.text import AnswerText
from tests.serving import served


class Pieces:
    """Tokens that are texts."""

    def add(self, piece):
        return piece

    def finish(self):
        return ""


def show(pieces, stops):
    """The parts that are shown of an answer whose tokens are these pieces of text."""
    answer = AnswerText(served.tokenizer(), stops)
    answer._stream, parts = Pieces(), []
    for piece in pieces:
        parts.append(answer.add(piece))
        if answer.is_stopped:
            break
    return [*parts, answer.finish()], answer.is_stopped


@pytest.mark.parametrize(
    ("text", "stops", "shown_text"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["ree", "two three"], "one "),
        ("aaab", ["aab"], "a"),
        ("abcd", ["abcx", "bc"], "a"),
        ("abc", ["abcd"], "abc"),
        ("abc", ["bc", "abc"], ""),
        ("a\n\nb", ["\n\n"], "a"),
        ("abc", [], "abc"),
    ],
)
def test_a_stop_string_ends_an_answer_wherever_its_tokens_begin(text, stops, shown_text):
    for size in range(1, len(text) + 1):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        parts, is_stopped = show(pieces, stops)
        assert "".join(parts) == shown_text
        assert is_stopped == (shown_text != text)


def test_what_may_begin_a_stop_string_is_held_back_and_no_more():
    parts, _ = show(["a", "b", "x", "b", "c"], ["abc"])
    assert parts == ["", "", "abx", "b", "c", ""]


def test_no_part_ends_within_a_character():
    tokenizer = served.tokenizer()
    ids = tokenizer.encode("né 漢字 🙂 roofs")
    answer = AnswerText(tokenizer, ["字 🙂 r"])
    parts = [answer.add(id) for id in ids]
    assert answer.is_stopped and "".join(parts) == "né 漢"
    answer = AnswerText(tokenizer)
    parts = [answer.add(id) for id in ids[:-8]] + [answer.finish()]
    assert "".join(parts) == tokenizer.decode(ids[:-8])
    assert not any("\ufffd" in part for part in parts[:-1])

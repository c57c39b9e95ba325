"""Jobs in one decoder: none is lost or mixed, and what goes wrong with one ends there."""

import queue
import time

import pytest

from research.generation.decoder import Decoder
from research.serving.errors import RequestError
from tests.serving import served


def ask(engine, chat, deliver=None):
    """A job, and the queue of its parts."""
    parts = queue.Queue()
    choices, _ = served.models().choices(chat)
    return engine.submit(choices, deliver or parts.put), parts


def answer(parts):
    """Text and reason of a job of one choice."""
    text, reason = "", None
    while reason is None:
        part = parts.get(timeout=60)
        if isinstance(part, RequestError):
            raise part
        text, reason = text + part.text, part.finish_reason
    return text, reason


def requests(count):
    """Of three models, some sampled, with a stop string or a schema."""
    form = {"type": "json_object"}
    kinds = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 1.0, "top_p": 0.9, "seed": 6, "stop": ["e", "a"]},
        {"temperature": 0.8, "seed": 7, "response_format": form},
    ]
    names = list(served.NAMES)
    return [
        served.request(f"roof {n}", names[n % 3], max_tokens=4 + n % 5, **kinds[n % 4])
        for n in range(count)
    ]


@pytest.mark.heavy
def test_no_answer_is_lost_and_none_mixed():
    chats = requests(16)
    with served.running(rows=2) as engine:
        waiting = [ask(engine, chat)[1] for chat in chats]
        answers = [answer(parts) for parts in waiting]
        assert engine.open_answers == 0
    assert answers == [served.alone(chat) for chat in chats]
    assert {reason for _, reason in answers} == {"stop", "length"}
    assert len(set(answers)) > len(chats) // 2  # a mixture would show


def slow(monkeypatch, seconds=0.02):
    """A decoder that takes so long for a step; gives the rows that were taken at each."""
    step, taken_rows = Decoder.step, []

    def wait(self):
        time.sleep(seconds)
        tokens = step(self)
        taken_rows.append(sum(row is not None for row in self._rows))
        return tokens

    monkeypatch.setattr(Decoder, "step", wait)
    return taken_rows


def test_a_cancelled_job_frees_its_rows(monkeypatch):
    taken_rows = slow(monkeypatch, seconds=0.1)
    with served.running(rows=2) as engine:
        first, parts = ask(engine, served.request("red", max_tokens=40, n=2, seed=1))
        parts.get(timeout=60)
        _, others = ask(engine, served.request("green", max_tokens=4, temperature=0.0))
        assert taken_rows[-1] == 2 and others.empty()
        first.cancel()
        assert answer(others) == served.alone(
            served.request("green", max_tokens=4, temperature=0.0)
        )
        assert engine.open_answers == 0
        assert len(taken_rows) < 30  # without what was cancelled


def test_more_than_may_wait_are_refused(monkeypatch):
    slow(monkeypatch, seconds=0.1)
    with served.running(rows=1, max_waiting=2) as engine:
        jobs = [ask(engine, served.request("red", max_tokens=40, seed=1))[0] for _ in range(3)]
        with pytest.raises(RequestError, match="ask again later") as error:
            ask(engine, served.request("red"))
        assert error.value.status == 429
        jobs[0].cancel()
        deadline = time.monotonic() + 60
        while engine.open_answers > 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ask(engine, served.request("red"))


def test_an_error_of_the_decoder_ends_its_requests_and_the_engine_goes_on(monkeypatch):
    step, chat = Decoder.step, served.request("red", temperature=0.0)

    def fail(self):
        raise RuntimeError("out of memory")

    with served.running(rows=2) as engine:
        monkeypatch.setattr(Decoder, "step", fail)
        waiting = [ask(engine, chat)[1] for _ in range(3)]
        for parts in waiting:
            with pytest.raises(RequestError, match="out of memory") as error:
                answer(parts)
            assert error.value.status == 500
        monkeypatch.setattr(Decoder, "step", step)
        assert answer(ask(engine, chat)[1]) == served.alone(chat)


def test_a_closed_engine_ends_what_waits_and_takes_no_more(monkeypatch):
    slow(monkeypatch, seconds=1)  # it closes long before an answer has ended by itself
    with served.running(rows=1) as engine:
        waiting = [ask(engine, served.request("red", max_tokens=40))[1] for _ in range(2)]
        waiting[0].get(timeout=60)
    # the first may have come to its end meanwhile, on a busy machine
    with pytest.raises(RequestError, match="ended") as error:
        answer(waiting[1])
    assert error.value.status == 503
    with pytest.raises(RequestError, match="ending"):
        ask(engine, served.request("red"))


def test_a_constraint_that_fails_ends_its_request_alone(monkeypatch):
    from research.generation.constraints.rows import GrammarConstraint

    chats = requests(8)
    expected = [served.alone(chat) for chat in chats]
    advance, failing = GrammarConstraint.advance, []

    def fail_once(row, token):
        if not failing:
            failing.append(row)
        if row is failing[0]:
            raise ValueError("a limit")
        advance(row, token)

    monkeypatch.setattr(GrammarConstraint, "advance", fail_once)
    with served.running(rows=4) as engine:
        waiting = [ask(engine, chat)[1] for chat in chats]
        # the fourth is the first with a schema
        with pytest.raises(RequestError, match="constraint failed: a limit"):
            answer(waiting.pop(3))
        assert [answer(parts) for parts in waiting] == expected[:3] + expected[4:]
        assert engine.open_answers == 0

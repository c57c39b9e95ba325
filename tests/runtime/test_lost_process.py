"""Which process of a run is lost, as the others tell before JAX aborts them."""

import ctypes
import signal
import socket
import threading

import pytest
from jax._src import distributed

from research.runtime import lost_process


def test_a_process_whose_beat_does_not_change_is_silent_until_it_beats_again():
    watch = lost_process.Watch()

    def silent(at, **beats):
        rows = [(f"graft/beat/{name[1:]}", beat) for name, beat in beats.items()]
        return watch.find_silent(rows, at)

    assert silent(0, p0="1", p1="1", p2="1") == ()
    assert silent(5, p0="5", p1="1", p2="5") == ()  # SILENCE is 5 s
    assert silent(6, p0="6", p1="1", p2="5") == (1,)
    assert silent(11, p0="11", p1="1", p2="5") == (1, 2)
    assert silent(12, p0="12", p1="2", p2="5") == (2,)
    assert silent(13, p0="13", p1="2") == ()  # it took its beat away: its end


@pytest.fixture
def coordinator(monkeypatch):
    """A process 0 that greets who connects, as gRPC does; and what ends it."""
    server = socket.create_server(("127.0.0.1", 0))
    greeted = threading.Thread(target=lambda: server.accept()[0].sendall(b"x"), daemon=True)
    greeted.start()
    monkeypatch.setattr(distributed.global_state, "process_id", 1)
    address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(distributed.global_state, "coordinator_address", address)
    yield server.close
    server.close()


def test_process_0_is_lost_where_it_does_not_answer(coordinator):
    assert lost_process.find_missing(()) == ()
    assert lost_process.find_missing((2,)) == (2,)  # that is why process 0 may be gone too
    coordinator()
    assert lost_process.find_missing(()) == (0,)


def test_an_abort_with_nobody_lost_goes_on(coordinator):
    ends = []
    watch = lost_process.Watch()
    lost_process.answer_abort(watch, ends.append)
    try:
        lost_process._handler(6)
        assert ends == []
        watch.silent = (2, 3)
        lost_process._handler(6)
        assert ends == [(2, 3)]
    finally:
        ctypes.CDLL(None).signal(int(signal.SIGABRT), ctypes.c_void_p(0))


def test_the_lost_are_named():
    assert lost_process.describe(()) == "another process is gone, or cannot be reached"
    assert lost_process.describe((1,)) == "process 1 is gone, or cannot be reached"
    both = "process 1 and process 2 are gone, or cannot be reached"
    assert lost_process.describe((1, 2)) == both

"""Claims: one process has a trial, a dead one does not keep it, and shares divide the trials."""

import concurrent.futures
import dataclasses

import pytest

from research.runtime import storage
from research.studies import claims, running
from research.studies.claims import Claim, ClaimLostError, Claims, Holder
from research.studies.share import Share

ADDRESS = "0123456789abcdef0123"


@pytest.fixture
def folder(tmp_path):
    return storage.absolute(tmp_path)


def claim_elsewhere(folder, host="elsewhere") -> Claim:
    """A claim of a process of another machine, whose locks do not reach this one."""
    holder = Holder("s: a seed=0", host, 7, since="2026-01-01T00:00:00+00:00")
    others = Claims(folder)
    assert claims._create(others.file(ADDRESS, 0), claims._text(holder))
    return Claim(others, ADDRESS, 0, holder)


def test_a_trial_belongs_to_one_process_until_it_is_released(folder):
    one, other = Claims(folder), Claims(folder)
    with one.take(ADDRESS, "s: a seed=0") as claim:
        claim.on_step(3, 10, 200.0)
        claim.renew()
        with other.take(ADDRESS, "") as refused:
            assert refused is None
        (holder,) = other.holders().values()
        assert "s: a seed=0: step 3 of 10, 200 tokens/s; process " in holder.describe()
    with other.take(ADDRESS, "s: a seed=0") as claim:
        assert claim is not None
    assert not other.holders()


def test_a_dead_process_of_another_machine_is_waited_for_and_then_succeeded(folder, monkeypatch):
    silent = claim_elsewhere(folder)
    ours = Claims(folder)
    for _ in range(2):
        with ours.take(ADDRESS, "") as refused:
            assert refused is None
    silent.renew()  # it lives
    monkeypatch.setattr(claims, "PATIENCE", -1.0)
    with ours.take(ADDRESS, "") as claim:
        assert claim.number == 1
        silent.renew()  # it lives after all, and leaves the trial to the other
        with pytest.raises(ClaimLostError):
            silent.on_step(1, 10, None)
        claim.renew()
        claim.on_step(1, 10, None)
    assert storage.names_in(folder / "running") == []


def test_a_sign_of_life_begins_the_patience_anew(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    other, ours = claim_elsewhere(folder), Claims(folder)
    for _ in range(3):
        assert ours._claim(ADDRESS, "") is None
        now[0] += claims.PATIENCE - 1
        other.renew()
    assert ours._claim(ADDRESS, "") is None
    now[0] += claims.PATIENCE
    assert ours._claim(ADDRESS, "").number == 1


def test_a_process_that_keeps_its_trial_and_is_silent_is_named(folder, monkeypatch):
    """One of this machine that is stopped holds its lock: nobody takes the trial over."""
    now = [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    stopped, ours = claim_elsewhere(folder), Claims(folder)
    assert ours.silent_holders() == []
    now[0] += claims.PATIENCE
    (holder,) = ours.silent_holders()
    text = running._describe_silent(holder)
    assert text.startswith("s: a seed=0: process 7 on elsewhere has it and gave no sign of life")
    assert "kill -CONT" in text and "kill -KILL" in text
    stopped.renew()
    assert ours.silent_holders() == []


@pytest.mark.parametrize("content", [None, b"", b'{"trial"'])
def test_a_dead_process_of_this_machine_is_succeeded_at_once(folder, content):
    claim = claim_elsewhere(folder, claims.platform.node())
    ours = Claims(folder)
    if content is None:
        with ours.take(ADDRESS, "") as again:
            assert again.number == 1
        return
    # killed while it wrote: waited for, as nothing says whose it is
    ours.file(ADDRESS, claim.number).write_bytes(content)
    assert ours._claim(ADDRESS, "") is None and len(ours.holders()) == 1


def test_of_many_that_come_at_once_one_makes_the_file(folder):
    file = Claims(folder).file(ADDRESS, 0)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda n: claims._create(file, str(n)), range(64)))
    assert sum(results) == 1 and file.read_text() == str(results.index(True))


def test_shares_begin_apart_and_each_ends_with_all(monkeypatch):
    @dataclasses.dataclass
    class Trial:
        address: str

    trials = [Trial(f"{number:020x}") for number in (7, 3, 12, 5, 9, 1, 30)]
    orders = [Share(number, 3).order(trials) for number in range(3)]
    own = [[t for t in trials if int(t.address, 16) % 3 == number] for number in range(3)]
    assert [order[: len(mine)] for order, mine in zip(orders, own, strict=True)] == own
    assert all(sorted(map(id, order)) == sorted(map(id, trials)) for order in orders)
    assert Share().order(trials) == trials
    for text in ("3/3", "1", "-1/2", "a/b"):
        with pytest.raises(ValueError, match="--share"):
            Share.parse(text)

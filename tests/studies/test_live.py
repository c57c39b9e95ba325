"""Progress of a whole study: trials of all, the trial at hand, and time left by FLOPs."""

import io

from research.runtime import storage
from research.studies import Form, Stage, Study, live
from research.studies.claims import Claims
from research.studies.ledger import Ledger
from research.studies.live import Pace, StudyBar
from research.studies.schedule import plan
from research.studies.trials import Resolver
from tests.helpers import tiny_run


class Terminal(io.StringIO):
    def isatty(self):
        return True

    @property
    def last(self):
        return self.getvalue().split("\r")[-1].strip()


def test_time_left_is_by_flops_since_this_process_began():
    pace = Pace()
    pace.mark(100.0, 5e9)  # done by others, before
    assert pace.seconds_left(1e9) is None
    pace.mark(110.0, 6e9)
    pace.mark(120.0, 9e9)
    assert pace.seconds_left(8e9) == 40.0
    pace.mark(100.0 + Pace.WINDOW_SECONDS + 15, 10e9)  # the first mark is too old
    # and the second: 1e9 in the rest
    assert pace.seconds_left(4e9) == 4 * (Pace.WINDOW_SECONDS - 5)


def test_the_bar_counts_what_all_processes_have_done(world, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    config = str(tiny_run.config_file(tmp_path, world.experiment(40, evaluate_split="heldout")))
    forms = {"small": Form({"data.batch_size": 8}), "large": Form({"data.batch_size": 16})}
    stages = (Stage("screen", (0,)), Stage("confirm", (1, 2)))
    resolver = Resolver(Study("", "", "", config, forms=forms, stages=stages))
    folder, stream = storage.absolute(tmp_path / "study"), Terminal()
    ledger, claims = Ledger(folder), Claims(folder)
    progress = plan(resolver, lambda trial: None)
    small, large = progress.trials
    with StudyBar(resolver, ledger, claims, stream) as bar:
        bar.update({}, progress)
        # two trials now, and four in the stage to come; 9 units of FLOPs in all
        assert stream.last.startswith("stage screen |") and "| 0/6 trials" in stream.last
        assert "left" not in stream.last
        with claims.take(small.address, small.label) as claim:
            now[0] = 10.0
            claim.on_step(20, 40, 1234.0)
            bar.beat(claim)
            assert "screen: small seed=0: step 20 of 40, 1,234 tokens/s" in stream.last
            assert "02:50 left" in stream.last  # 0.5 of 9 units in 10 s
            # another process runs and ends the other trial: twice the FLOPs
            with Claims(folder).take(large.address, large.label) as other:
                other.on_step(10, 40, None)
                other.renew()
                now[0] = 21.0
                bar.beat(claim)
                assert "2 run" in stream.last
            row = {"address": large.address, "status": "finished", "inputs": "", "code": ""}
            Ledger(folder).write(row)
            now[0] = 40.0
            bar.beat(claim)
            assert "1/6 trials" in stream.last
            assert "01:44 left" in stream.last  # 2.5 of 9 units in 40 s
    assert StudyBar(resolver, ledger, claims, io.StringIO())._bar.disable

"""The progress of a whole study while it runs: a bar of trials, the trial at hand, and time left.

The time left is that of the FLOPs which are missing, at the rate at which all processes of the
study have done theirs since this one began: trials are not alike long, and others work too.
"""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Mapping
from typing import IO

from tqdm import tqdm

from research.studies.claims import Claim, Claims, Holder
from research.studies.estimates import stage_costs
from research.studies.ledger import Ledger, Row
from research.studies.schedule import Progress
from research.studies.trials import BEFORE, Resolver

LOOK_SECONDS = 10.0  # between two looks at what other processes have done


class Pace:
    """FLOPs done over time, by all processes."""

    WINDOW_SECONDS = 1800.0

    def __init__(self) -> None:
        self._marks: collections.deque[tuple[float, float]] = collections.deque()

    def mark(self, now: float, flops: float) -> None:
        """Notes that so many FLOPs of the study are done."""
        self._marks.append((now, flops))
        while now - self._marks[0][0] > self.WINDOW_SECONDS and len(self._marks) > 2:
            self._marks.popleft()

    def seconds_left(self, flops: float) -> float | None:
        """Seconds for so many more; None before anything was done."""
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return flops * (end - start) / (last - first) if last > first else None


class StudyBar:
    """A tqdm bar of the study's trials; shows nothing where there is no terminal."""

    def __init__(
        self, resolver: Resolver, ledger: Ledger, claims: Claims, stream: IO[str] | None = None
    ):
        self._resolver, self._ledger, self._claims = resolver, ledger, claims
        # `sys.stderr` is a trial's log while the trial runs
        self._bar = tqdm(
            file=stream or sys.stderr,
            disable=None,
            dynamic_ncols=True,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} trials{postfix}",
        )
        self._pace = Pace()
        # address -> FLOPs, of trials asked for so far; FLOPs of all, also of stages to come
        self._flops: dict[str, float] = {}
        self._all_flops = 0.0
        self._holders: Mapping[str, Holder] = {}
        self._done_addresses: set[str] = set()  # addresses
        self._last_look = 0.0

    def __enter__(self) -> StudyBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, rows: Mapping[str, Row], progress: Progress) -> None:
        """Shows where the study stands."""
        if self._bar.disable:
            return
        costs = stage_costs(self._resolver, progress)
        by_cell = {(c.stage, c.cell): c.flops for cost in costs for c in cost.cells}
        self._flops = {t.address: by_cell.get((t.stage, t.cell), 0.0) for t in progress.trials}
        self._all_flops = sum(cost.flops for cost in costs)
        missing = {trial.address for trial in progress.missing}
        self._done_addresses = set(self._flops) - missing
        before = sum(trial.stage == BEFORE for trial in progress.trials)
        self._bar.total = before + sum(cost.trials for cost in costs)
        self._bar.n = len(self._done_addresses)
        stage = progress.stage.name if progress.stage else "finished"
        self._bar.set_description_str(f"stage {stage}", refresh=False)
        self._look(rows)
        self._draw(None)

    def beat(self, claim: Claim) -> None:
        """Shows the trial of this process; once in a second, in another thread."""
        if self._bar.disable:
            return
        if time.monotonic() - self._last_look > LOOK_SECONDS:
            self._look(self._ledger.read())
        self._draw(claim)

    def _look(self, rows: Mapping[str, Row]) -> None:
        self._last_look = time.monotonic()
        self._holders = self._claims.holders()
        self._done_addresses |= set(rows) & set(self._flops)
        self._bar.n = len(self._done_addresses)

    def _draw(self, claim: Claim | None) -> None:
        holders = dict(self._holders)
        if claim is not None:
            holders[claim.address] = claim.holder
        shares = {address: holder.share for address, holder in holders.items()}
        shares |= dict.fromkeys(self._done_addresses, 1.0)
        flops = sum(self._flops.get(address, 0.0) * share for address, share in shares.items())
        self._pace.mark(time.monotonic(), flops)
        parts = [claim.holder.progress] if claim is not None else []
        if len(holders) > 1:
            parts.append(f"{len(holders)} run")
        seconds = self._pace.seconds_left(max(self._all_flops - flops, 0.0))
        if seconds is not None:
            parts.append(f"{tqdm.format_interval(seconds)} left")
        self._bar.set_postfix_str(", ".join(parts), refresh=True)

"""What one can do with a study at a terminal: plan, run, look, ask, clean up."""

from __future__ import annotations

import csv
import io
import json
import shutil
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from research.reports.tables import fitted_table, text_table
from research.runtime import files, storage
from research.runtime.terminal import show
from research.studies import estimates, index, prices, report, running
from research.studies.claims import Claims
from research.studies.ledger import DIVERGED, FAILED, Ledger, Row, to_parquet
from research.studies.results import find_row, joined_rows, lookup_in, stale_count
from research.studies.schedule import Progress, plan
from research.studies.share import WHOLE, Share
from research.studies.study import Study
from research.studies.tables import cell_table
from research.studies.trials import Resolver
from research.studies.verdicts import verdicts


class Desk:
    """A study, its folder, and the trials so far."""

    def __init__(
        self,
        study: Study,
        folder: str | Path,
        home: Path | None = None,
        overrides: tuple[str, ...] = (),
    ):
        """Opens a study.

        Args:
          folder: of trials and the ledger, on a disk or in a bucket.
          home: the study's own folder, with its page and the ledger of earlier results.
          overrides: of the study's config, `key=value` each.

        Raises:
          FileNotFoundError, ValueError: the study does not fit its config; nothing has run.
        """
        self.folder = storage.absolute(folder)
        self.resolver = Resolver(study, overrides)
        self.home = home
        self.claims = Claims(self.folder)
        self.ledger = Ledger(self.folder, home / report.LEDGER if home else None)

    def look(self) -> tuple[dict[str, Row], Progress]:
        """The rows so far, and what they mean for the study."""
        rows = self.ledger.read()
        for name in self.ledger.damaged:
            print(f"{name} in the ledger is damaged: its trial runs again")
        return rows, plan(self.resolver, lookup_in(self.resolver, rows))

    def print_plan(
        self,
        workers: int = 1,
        machines: int = 1,
        price_per_hour: float | None = None,
        chips: prices.Accelerators | None = None,
    ) -> bool:
        """Trials, FLOPs, hours and money of every stage; whether everything fits.

        Args:
          workers: processes that share this machine.
          machines: so many such machines.
          price_per_hour: of this machine.
          chips: where trials run; None: here.
        """
        rows, progress = self.look()
        costs = estimates.stage_costs(self.resolver, progress)
        place = None
        if chips is None:
            place = prices.here(rows, workers, machines, price_per_hour)
        else:
            reports = chips.examine(costs)
            print(prices.cell_table(reports), end="\n\n")
            if not all(report.fits for _, report in reports):
                print(prices.describe(costs, None))
                return False
            place = chips.place()
        print(prices.describe(costs, place))
        self._print_stale(rows, progress)
        return True

    def run(
        self,
        retry: bool = False,
        keep_models: bool = False,
        share: Share = WHOLE,
        trials: int | None = None,
        together: int | None = None,
    ) -> None:
        """Runs what is missing, see `running.run`.

        Raises:
          SystemExit: 75 after a signal; 1 if trials failed.
        """
        storage.check_writable(self.folder)
        rows, progress = self.look()
        self._print_stale(rows, progress)
        progress = running.run(
            self.resolver,
            self.ledger,
            self.folder,
            retry=retry,
            keep_models=keep_models,
            share=share,
            trials=trials,
            together=together,
        )
        failed_count = self._print_problems(self.ledger.read(), progress)
        if failed_count:
            raise SystemExit(1)

    def print_status(self) -> None:
        """Trials by stage and state, what runs now and where, and the errors of what failed."""
        rows, progress = self.look()
        counts: dict[str, Counter[str]] = {}
        for trial in progress.trials:
            row = find_row(self.resolver, rows, trial)
            state = "missing" if row is None else row["status"]
            counts.setdefault(trial.stage, Counter())[state] += 1
        for stage in self.resolver.study.stages:
            states = counts.get(stage.name)
            text = (
                ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
                if states
                else "waits for the stage before it"
            )
            print(f"{stage.name}: {text}")
        for holder in self.claims.holders().values():
            print(f"now: {holder.describe()}")
        self._print_stale(rows, progress)
        self._print_problems(rows, progress)

    def print_table(self, csv_file: Path | None = None) -> None:
        """The table of the last stage with results."""
        rows, progress = self.look()
        cells = cell_table(self.resolver, rows, progress)
        if not cells.lines:
            raise ValueError("no trial has run: graft study run")
        print(f"stage {cells.stage}" + ("" if progress.is_finished else ", not finished"))
        width = _width()
        print(fitted_table(cells.lines, cells.columns, width))
        self._print_edges(progress)
        if judged := verdicts(self.resolver, rows, progress):
            verdict_rows, columns = report.verdict_table(judged)
            print(f"\n{fitted_table(verdict_rows, columns, width)}")
            for text in report.unjudged(judged):
                show(f"\n{textwrap.fill(text, width)}")
        if csv_file is not None:
            files.atomic_write(csv_file, self._csv(rows, progress))
            print(f"\nevery trial: {csv_file}")

    def print_query(self, sql: str) -> None:
        """The answer to SQL over `trials` (in this study, with its axes) and `ledger` (all rows).

        Raises:
          ValueError: DuckDB refuses it; says why.
        """
        import duckdb  # only this needs it

        rows, progress = self.look()
        with duckdb.connect() as connection:
            connection.execute("SET enable_external_access = false")
            tables: dict[str, list[Row]] = {
                "trials": list(joined_rows(self.resolver, rows, progress)),
                "ledger": list(rows.values()),
            }
            for name, content in tables.items():
                if not content:
                    raise ValueError("no trial has run: graft study run")
                reader = pyarrow.BufferReader(to_parquet(content))
                connection.register(name, parquet.read_table(reader))
            try:
                answer = connection.execute(sql)
                names = [column[0] for column in answer.description or ()]
                answer_rows = [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
            except duckdb.Error as error:
                raise ValueError(f"{error}") from None
        print(text_table(answer_rows) if answer_rows else "no rows")

    def write_report(self) -> None:
        """Writes the study's page into its own folder."""
        assert self.home is not None  # only a sweep has none
        rows, progress = self.look()
        names = report.write(self.home, self.home.name, self.resolver, rows, progress)
        print(f"wrote {', '.join(names)} in {self.home}")
        if (self.home.parent / index.README).is_file():
            print(f"wrote {index.write(self.home.parent)}")

    def clean(self) -> None:
        """Removes the folders of trials that are over, and damaged rows; results stay."""
        rows, progress = self.look()
        for name in self.ledger.damaged:
            self.ledger.remove(name.partition(".")[0])
        removed = 0
        for name in storage.names_in(self.folder / "trials"):
            row = rows.get(name)
            if row is not None and row["status"] != FAILED:
                files.remove(self.folder / "trials" / name, self.folder)
                removed += 1
        print(f"removed the folders of {removed} trials; {len(rows)} results stay")

    def _csv(self, rows: dict[str, Row], progress: Progress) -> str:
        content: list[dict[str, Any]] = []
        for row in joined_rows(self.resolver, rows, progress):
            content.append(
                {
                    name: json.dumps(value) if isinstance(value, list | dict) else value
                    for name, value in row.items()
                }
            )
        names = list(dict.fromkeys(name for row in content for name in row))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(content)
        return buffer.getvalue()

    def _print_edges(self, progress: Progress) -> None:
        for choices in list(progress.choices.values())[:1]:
            labels = [choice.cell.label for choice in choices if choice.at_edge]
            if labels:
                text = (
                    "the best value lies at an edge of those tried, so that a better one may lie "
                    f"beyond: {', '.join(labels)}"
                )
                show(f"\n{textwrap.fill(text, _width())}")

    def _print_stale(self, rows: dict[str, Row], progress: Progress) -> None:
        count = stale_count(self.resolver, rows, progress)
        if count:
            codes = sorted({row["code"] for row in rows.values()})
            print(
                f"{count} missing trials have results of other code: they run again, unless the "
                f"study says accepted_code=({', '.join(map(repr, codes))},)"
            )

    def _print_problems(self, rows: dict[str, Row], progress: Progress) -> int:
        """Prints trials that did not finish; gives the number of those that failed."""
        failed_count = 0
        for trial in progress.trials:
            row = find_row(self.resolver, rows, trial)
            if row is None or row["status"] not in (FAILED, DIVERGED):
                continue
            failed_count += row["status"] == FAILED
            log = self.folder / "trials" / trial.address / running.LOG
            place = f" on {row['host']}" if row.get("host") else ""
            print(f"{trial.label}: {row['status']}{place}: {row['error']}\n  {log}")
        if failed_count:
            print(f"{failed_count} trials failed: --retry runs them again")
        return failed_count


def _width() -> int:
    """Columns of the terminal; 100 where there is none."""
    return max(60, shutil.get_terminal_size((100, 24)).columns)

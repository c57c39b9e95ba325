"""All stages in their order: a plan that says what is there already, and the run of the rest.

    documents ----+-> quality --------+
                  +-> contamination --+-> exact -> near -> tokens

What looks at one document by itself comes first, so that what is kept of several alike is always
a document that passes. Each stage depends on those before it, on its own part of the config and on
nothing else: that is its key, and what a changed config makes anew.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from research.config import schema
from research.preparation import (
    contamination,
    documents,
    duplicates,
    minhash,
    output,
    quality,
    stages,
    statistics,
)
from research.preparation.config import Contamination, PreparationConfig
from research.preparation.documents import RowRanges, SourceSplit
from research.preparation.runner import Runner
from research.preparation.stages import Stage
from research.preparation.statistics import Statistics
from research.runtime import storage
from research.runtime.locks import lock_file
from research.text import tokenizer as tokenizers
from research.text.tokenizer import Tokenizer

POINTER = "prepared.json"
# Takes a line about the progress.
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class PreparationPlan:
    """The stages of a preparation in their order, with what they read."""

    config: PreparationConfig
    root: str
    source_splits: tuple[SourceSplit, ...]
    ranges: RowRanges
    evaluation_splits: tuple[SourceSplit, ...]
    tokenizer: Tokenizer
    # Name -> stage, in order.
    stages: dict[str, Stage]

    @property
    def removal_rules(self) -> list[tuple[Stage, Sequence[str]]]:
        """The stages that remove documents, with the names of their rules."""
        rules: dict[str, Sequence[str]] = {"exact": (), "near": ()}
        if self.config.quality is not None:
            rules["quality"] = quality.rule_names(self.config.quality)
        if self.config.contamination is not None:
            rules["contamination"] = contamination.evaluation_names(self.config.contamination)
        return [(stage, rules[name]) for name, stage in self.stages.items() if name in rules]

    def removing_stages(self, before: str) -> list[Stage]:
        """The stages that remove documents and come before this one."""
        names = list(self.stages)
        earlier = names[: names.index(before)] if before in names else names
        return [stage for stage, _ in self.removal_rules if stage.name in earlier]


def make_plan(config: PreparationConfig, root: str | os.PathLike[str]) -> PreparationPlan:
    """Opens all sources and the tokenizer and computes every stage's key.

    Raises:
        ValueError, FileNotFoundError: a source or the tokenizer cannot be read, or `root` holds
          something else.
    """
    folder = os.fspath(epath.Path(root))
    stages.check_folder(folder)
    tokenizer = _open_tokenizer(config.tokenizer)
    source_splits = [
        documents.open_split(source, split) for split in config.splits for source in config.sources
    ]
    evaluation_splits: list[SourceSplit] = []
    stages_by_name: dict[str, Stage] = {}

    def add(name: str, *earlier: str, **dependencies: Any) -> None:
        keys = {other: stages_by_name[other].key for other in earlier if other in stages_by_name}
        stages_by_name[name] = Stage(name, folder, {**dependencies, "stages": keys})

    content = [
        [each.kind, each.split, each.fingerprint, each.rows, dict(each.acceptance)]
        for each in source_splits
    ]
    add("documents", sources=content, rows=config.rows)
    if config.quality is not None:
        add("quality", "documents", quality=schema.to_dict(config.quality))
    if config.contamination is not None:
        evaluation_splits = contamination.evaluation_splits(config.contamination)
        add(
            "evaluations",
            contamination=schema.to_dict(config.contamination),
            sources=[[each.fingerprint, dict(each.acceptance)] for each in evaluation_splits],
        )
        add("contamination", "documents", "evaluations")
    if config.exact_duplicates:
        add("exact", "documents", "quality", "contamination")
    if config.near_duplicates is not None:
        settings = schema.to_dict(config.near_duplicates)
        add("near", "documents", "quality", "contamination", "exact", near=settings)
    add("tokens", *stages_by_name, tokenizer=tokenizer.fingerprint())
    return PreparationPlan(
        config=config,
        root=folder,
        source_splits=tuple(source_splits),
        ranges=RowRanges(tuple(source_splits), config.rows),
        evaluation_splits=tuple(evaluation_splits),
        tokenizer=tokenizer,
        stages=stages_by_name,
    )


def describe_plan(plan: PreparationPlan) -> str:
    """The plan in words: sources, documents, stages and what is there already."""
    lines = ["sources:"]
    for source_splits, note in (
        (plan.source_splits, ""),
        (plan.evaluation_splits, ", only looked for"),
    ):
        for each in source_splits:
            bad = f", {each.bad_lines:,} bad lines left out" if each.bad_lines else ""
            lines.append(f"  {each.kind}, {each.split}: {each.rows:,} rows{bad}{note}")
    lines.append(f"{plan.ranges.documents:,} documents in {len(plan.ranges):,} ranges")
    lines.append("stages:")
    for stage in plan.stages.values():
        status = stage.status()
        work = "there already" if status == "done" else "to do"
        why = "" if status in ("done", "missing") else f" ({status})"
        lines.append(f"  {stage.folder.name}: {work}{why}")
    lines.append(f"output: {plan.root}, tokens of {plan.config.tokenizer}")
    return "\n".join(lines)


def prepare(
    config: PreparationConfig,
    root: str | os.PathLike[str],
    runner: Runner,
    log: Log = print,
) -> Statistics:
    """Runs every stage that is not done yet, and points `root` at the result.

    Args:
      config: what is prepared.
      root: a folder on a disk or in a bucket; every worker reads and writes it.
      runner: runs the stages' pipelines.
      log: gets a line for each stage, and the table at the end.

    Returns:
      The statistics: split -> kind -> numbers.

    Raises:
        ValueError: a source, a record or the folder is not as it must be; says where.
        FileNotFoundError: a source or the tokenizer is not there.
        OSError: a file could not be read or written, such as on a full disk; says what to do.
    """
    plan = make_plan(config, root)
    with _advise_on_storage_errors(plan.root), _lock_folder(plan.root):
        work_done = [name for name in plan.stages if run_stage(plan, name, runner, log)]
        last = plan.stages["tokens"]
        numbers = json.loads((last.folder / "statistics.json").read_text())
        pointer = epath.Path(plan.root) / POINTER
        content = json.dumps({"dataset": f"stages/{last.folder.name}"}) + "\n"
        if not pointer.exists() or pointer.read_text() != content:
            stages.write(pointer, content.encode())
            work_done.append(POINTER)
    log(statistics.table(numbers))
    log(f"{plan.root}: " + ("prepared." if work_done else "nothing to do, all of it was there."))
    return numbers


def run_stage(plan: PreparationPlan, name: str, runner: Runner, log: Log) -> bool:
    """Runs a stage unless it is done already; returns whether it had to."""
    stage = plan.stages[name]
    status = stage.status()
    if status == "done":
        log(f"{stage.folder.name}: there already")
        return False
    if status != "missing":
        log(f"{stage.folder.name}: {status}; it is made again")
    seconds = stage.build(functools.partial(_fill_stage, plan, name, runner))
    log(f"{stage.folder.name}: {seconds:.1f} s")
    return True


def _fill_stage(plan: PreparationPlan, name: str, runner: Runner) -> None:
    """Writes the files of a stage."""
    config, stage, ranges = plan.config, plan.stages[name], plan.ranges
    earlier = plan.removing_stages(before=name)
    if name == "documents":
        runner.for_each(ranges, functools.partial(documents.measure_documents, stage))
    elif name == "quality" and config.quality:
        runner.for_each(ranges, functools.partial(quality.mark_low_quality, stage, config.quality))
    elif name == "evaluations" and config.contamination:
        _collect_ngrams(plan, config.contamination, runner)
    elif name == "contamination":
        evaluations = plan.stages["evaluations"]
        runner.for_each(
            ranges, functools.partial(contamination.mark_contaminated, stage, evaluations)
        )
    elif name == "exact":
        documents_stage = plan.stages["documents"]
        runner.run(
            lambda root: duplicates.mark_exact_duplicates(
                root, stage, documents_stage, earlier, ranges
            )
        )
    elif name == "near" and (settings := config.near_duplicates):
        runner.run(
            lambda root: minhash.mark_near_duplicates(root, stage, settings, earlier, ranges)
        )
        (stage.folder / "signatures").rmtree()
    elif name == "tokens":
        _write_tokens(plan, stage, runner)


def _collect_ngrams(plan: PreparationPlan, config: Contamination, runner: Runner) -> None:
    """Collects the n-grams of all evaluation examples, and checks that each has some."""
    stage = plan.stages["evaluations"]
    ranges = RowRanges(plan.evaluation_splits, plan.config.rows)
    runner.run(lambda root: contamination.collect_ngrams(root, stage, config, ranges))
    contamination.check_searchable(stage, config)


def _write_tokens(plan: PreparationPlan, stage: Stage, runner: Runner) -> None:
    """Writes the dataset of what is left, with its statistics and its config."""
    rules = plan.removal_rules
    numbers, kept_counts = statistics.count(plan.ranges, plan.stages["documents"], rules)
    for split in plan.config.splits:
        ranges = [each for each in plan.ranges if each.source_split.split == split]
        if not sum(kept_counts[each.number] for each in ranges):
            total = sum(kind["documents"] for kind in numbers[split].values())
            raise ValueError(
                f"No document of the split {split!r} is left. Of {total:,}, these were removed: "
                f"{statistics.describe_removals({split: numbers[split]})}."
            )
    shards = output.Shards(plan.ranges, kept_counts)
    output.write_dataset(runner, stage, plan.tokenizer, [each for each, _ in rules], shards)
    content = json.loads((stage.folder / "content.json").read_text())
    statistics.add_output(numbers, content, stage)
    stages.write(stage.folder / "statistics.json", json.dumps(numbers, indent=1).encode())
    stages.write(stage.folder / "config.json", json.dumps(schema.to_dict(plan.config)).encode())


def _open_tokenizer(path: str) -> Tokenizer:
    if storage.is_folder(path):
        from research.checkpoints import runs  # It imports JAX.

        return runs.open_run(path).tokenizer
    return tokenizers.load(path)


@contextlib.contextmanager
def _advise_on_storage_errors(root: str) -> Iterator[None]:
    """Adds to an error of a file or a disk that the same command goes on with the work."""
    try:
        yield
    except BrokenPipeError:  # the reader of standard output is gone
        raise
    except OSError as error:
        disk_full = any(
            os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)
        )
        advice = "make room" if disk_full else "mend that"
        raise OSError(
            f"{root}: {error}: what is finished is kept; {advice} and run the same command."
        ) from error


@contextlib.contextmanager
def _lock_folder(root: str) -> Iterator[None]:
    """Refuses a second preparation in the same folder of this machine."""
    if "://" in root:
        yield
        return
    busy = f"{root} is being prepared by another process"
    with lock_file(Path(root) / "stages" / ".lock", busy):
        yield

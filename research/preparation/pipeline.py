"""All stages in their order: a plan that says what is there already, and the work that is not.

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
from research.preparation.config import PreparationConfig
from research.preparation.documents import Part, Ranges
from research.preparation.running import Runner
from research.preparation.stages import Stage
from research.runtime import storage
from research.runtime.locks import lock_file
from research.text import tokenizer as tokenizers
from research.text.tokenizer import Tokenizer

POINTER = "prepared.json"
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class PreparationPlan:
    """What will be done, and in which order."""

    config: PreparationConfig
    root: str
    parts: tuple[Part, ...]
    ranges: Ranges
    evaluations: tuple[Part, ...]
    tokenizer: Tokenizer
    # Name -> stage, in order.
    stages: dict[str, Stage]

    @property
    def removing(self) -> list[tuple[Stage, Sequence[str]]]:
        """The stages that remove documents, with the names of their rules."""
        rules: dict[str, Sequence[str]] = {"exact": (), "near": ()}
        if self.config.quality is not None:
            rules["quality"] = quality.rule_names(self.config.quality)
        if self.config.contamination is not None:
            rules["contamination"] = contamination.names(self.config.contamination)
        return [(stage, rules[name]) for name, stage in self.stages.items() if name in rules]

    def before(self, name: str) -> list[Stage]:
        """The removing stages whose work this one builds on."""
        names = list(self.stages)
        earlier = names[: names.index(name)] if name in names else names
        return [stage for stage, _ in self.removing if stage.name in earlier]


def plan(config: PreparationConfig, root: str | os.PathLike[str]) -> PreparationPlan:
    """Opens all sources and the tokenizer and computes every stage's key.

    Raises:
        ValueError, FileNotFoundError: a source or the tokenizer cannot be read, or `root` holds
          something else.
    """
    folder = os.fspath(epath.Path(root))
    stages.check_own(folder)
    tokenizer = _open_tokenizer(config.tokenizer)
    parts = [
        documents.open_part(source, split) for split in config.splits for source in config.sources
    ]
    evaluations: list[Part] = []
    found: dict[str, Stage] = {}

    def add(name: str, *earlier: str, **depends: Any) -> None:
        keys = {other: found[other].key for other in earlier if other in found}
        found[name] = Stage(name, folder, {**depends, "stages": keys})

    content = [[part.kind, part.split, part.fingerprint, part.rows] for part in parts]
    add("documents", sources=content, rows=config.rows)
    if config.quality is not None:
        add("quality", "documents", quality=schema.to_dict(config.quality))
    if config.contamination is not None:
        evaluations = contamination.evaluation_parts(config.contamination)
        add(
            "evaluations",
            contamination=schema.to_dict(config.contamination),
            sources=[part.fingerprint for part in evaluations],
        )
        add("contamination", "documents", "evaluations")
    if config.exact_duplicates:
        add("exact", "documents", "quality", "contamination")
    if config.near_duplicates is not None:
        settings = schema.to_dict(config.near_duplicates)
        add("near", "documents", "quality", "contamination", "exact", near=settings)
    add("tokens", *found, tokenizer=tokenizer.fingerprint())
    ranges = Ranges(tuple(parts), config.rows)
    return PreparationPlan(
        config, folder, tuple(parts), ranges, tuple(evaluations), tokenizer, found
    )


def describe(planned: PreparationPlan) -> str:
    """The plan in words: sources, documents, stages and what is there already."""
    lines = ["sources:"]
    for parts, note in ((planned.parts, ""), (planned.evaluations, ", only looked for")):
        for part in parts:
            bad = f", {part.bad_lines:,} bad lines left out" if part.bad_lines else ""
            lines.append(f"  {part.kind}, {part.split}: {part.rows:,} rows{bad}{note}")
    lines.append(f"{planned.ranges.documents:,} documents in {len(planned.ranges):,} ranges")
    lines.append("stages:")
    for stage in planned.stages.values():
        state = stage.state()
        work = "there already" if state == "done" else "to do"
        why = "" if state in ("done", "missing") else f" ({state})"
        lines.append(f"  {stage.folder.name}: {work}{why}")
    lines.append(f"output: {planned.root}, tokens of {planned.config.tokenizer}")
    return "\n".join(lines)


def prepare(
    config: PreparationConfig,
    root: str | os.PathLike[str],
    run: Runner,
    say: Say = print,
) -> dict[str, Any]:
    """Runs every stage that is not done yet, and points `root` at the result.

    Args:
      config: what is prepared.
      root: a folder on a disk or in a bucket; every worker reads and writes it.
      run: runs the stages' pipelines.
      say: gets a line for each stage, and the table at the end.

    Returns:
      The statistics: split -> kind -> numbers.

    Raises:
        ValueError: a source, a record or the folder is not as it must be; says where.
        FileNotFoundError: a source or the tokenizer is not there.
        OSError: a file could not be read or written, such as on a full disk; says what to do.
    """
    planned = plan(config, root)
    with _resumable(planned.root), _lock_folder(planned.root):
        made = [name for name in planned.stages if _bring_about(planned, name, run, say)]
        last = planned.stages["tokens"]
        numbers = json.loads((last.folder / "statistics.json").read_text())
        pointer = epath.Path(planned.root) / POINTER
        wanted = json.dumps({"dataset": f"stages/{last.folder.name}"}) + "\n"
        if not pointer.exists() or pointer.read_text() != wanted:
            stages.write(pointer, wanted.encode())
            made.append(POINTER)
    say(statistics.table(numbers))
    say(f"{planned.root}: " + ("prepared." if made else "nothing to do, all of it was there."))
    return numbers


def _bring_about(planned: PreparationPlan, name: str, run: Runner, say: Say) -> bool:
    """Makes a stage unless it is done; returns whether it had to."""
    stage = planned.stages[name]
    state = stage.state()
    if state == "done":
        say(f"{stage.folder.name}: there already")
        return False
    if state != "missing":
        say(f"{stage.folder.name}: {state}; it is made again")
    seconds = stage.make(functools.partial(_work, planned, name, run))
    say(f"{stage.folder.name}: {seconds:.1f} s")
    return True


def _work(planned: PreparationPlan, name: str, run: Runner) -> None:
    """What a stage does."""
    config, stage, ranges = planned.config, planned.stages[name], planned.ranges
    before = planned.before(name)
    if name == "documents":
        run.each(ranges, functools.partial(documents.measure, stage))
    elif name == "quality" and config.quality:
        run.each(ranges, functools.partial(quality.mark, stage, config.quality))
    elif name == "evaluations" and (wanted := config.contamination):
        looked_for = Ranges(planned.evaluations, config.rows)
        run(lambda root: contamination.collect(root, stage, wanted, looked_for))
        contamination.check_found(stage, wanted)
    elif name == "contamination":
        collected = planned.stages["evaluations"]
        run.each(ranges, functools.partial(contamination.mark, stage, collected))
    elif name == "exact":
        measured = planned.stages["documents"]
        run(lambda root: duplicates.exact(root, stage, measured, before, ranges))
    elif name == "near" and (alike := config.near_duplicates):
        run(lambda root: minhash.near(root, stage, alike, before, ranges))
        (stage.folder / "signatures").rmtree()
    elif name == "tokens":
        _write_tokens(planned, stage, run)


def _write_tokens(planned: PreparationPlan, stage: Stage, run: Runner) -> None:
    removing = planned.removing
    numbers, kept = statistics.count(planned.ranges, planned.stages["documents"], removing)
    for split in planned.config.splits:
        if not sum(kept[each.number] for each in planned.ranges if each.part.split == split):
            came = sum(about["documents"] for about in numbers[split].values())
            raise ValueError(
                f"No document of the split {split!r} is left. Of {came:,}, these were removed: "
                f"{statistics.removed({split: numbers[split]})}."
            )
    chosen = output.Shards(planned.ranges, kept)
    output.write(run, stage, planned.tokenizer, [each for each, _ in removing], chosen)
    content = json.loads((stage.folder / "content.json").read_text())
    statistics.add_output(numbers, content, stage)
    stages.write(stage.folder / "statistics.json", json.dumps(numbers, indent=1).encode())
    stages.write(stage.folder / "config.json", json.dumps(schema.to_dict(planned.config)).encode())


def _open_tokenizer(path: str) -> Tokenizer:
    if storage.is_folder(path):
        from research.checkpoints import runs  # It imports JAX.

        return runs.open_run(path).tokenizer
    return tokenizers.load(path)


@contextlib.contextmanager
def _resumable(root: str) -> Iterator[None]:
    """Says of an error of a file or a disk that the work can go on after it."""
    try:
        yield
    except BrokenPipeError:  # whoever reads what is said has gone
        raise
    except OSError as error:
        full = any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
        what = "make room" if full else "mend that"
        raise OSError(
            f"{root}: {error}: what is finished is kept; {what} and run the same command."
        ) from error


@contextlib.contextmanager
def _lock_folder(root: str) -> Iterator[None]:
    """Refuses a second preparation in the same folder of this machine."""
    if "://" in root:
        yield
        return
    busy = f"{root} is being prepared by another process."
    with lock_file(Path(root) / "stages" / ".lock", busy):
        yield

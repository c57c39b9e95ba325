"""The quickstart: tokenizer, pretraining, tuning and evaluation on real data, one table, one page.

    tools/quickstart [--base smollm2] [--workdir DIR] [--fresh] [--steps N]

Every stage is a command of its own, printed as it runs; a stage that is finished is not run again
(`--fresh` starts over). Results: DIR/results.json and DIR/report.html, by default in
runs/quickstart. With `--base smollm2` the base is a real one, SmolLM2-135M-Instruct, in place of
one pretrained here (48 minutes on two cores; runs/quickstart_smollm2).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import shutil
import sys
import time
from pathlib import Path

from experiments.quickstart.stories import STORIES, Story
from research.config import cli
from research.runtime import signals
from research.runtime.programs import run_program

VOCABULARY = 2048
# with --steps
FEW_QUESTIONS = ["choice.max_questions=60", "text.max_tokens=4000"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--base", choices=STORIES, default="own", help="own: pretrained here (the default)"
    )
    parser.add_argument("--workdir", metavar="DIR")
    parser.add_argument("--fresh", action="store_true", help="delete the folder and start over")
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="so many steps a run, and few questions: the line, not the learning",
    )
    arguments = parser.parse_args()
    start = time.perf_counter()
    story = STORIES[arguments.base]
    default = "runs/quickstart" if story.pretrain else f"runs/quickstart_{arguments.base}"
    folder = Path(arguments.workdir or default)
    base = folder / story.base
    if arguments.fresh and folder.exists():
        if not ((folder / "tokenizer.json").exists() or base.exists()):
            parser.error(f"--fresh would delete {folder}, which no quickstart made")
        shutil.rmtree(folder)
    prepare_data(story)
    overrides, questions = [], []
    if arguments.steps:
        questions = FEW_QUESTIONS
        overrides = [f"--config.steps={arguments.steps}", "--config.schedule.warmup=0"]
    tokenizer = base
    if story.pretrain:
        tokenizer = folder / "tokenizer.json"
        if not tokenizer.exists():
            run("tokenizer", "--config", story.pretrain,
                "--vocabulary", VOCABULARY, "--out", tokenizer)  # fmt: skip
        train(base, story.pretrain, f"--config.tokenizer={tokenizer}", *overrides)
    elif not base.exists():
        run("convert", "import", "--from", story.source, "--out", base)
    train(folder / "full", f"{story.tune}:full", f"--config.init_from={base}", *overrides)
    train(folder / "lora", f"{story.tune}:lora", f"--config.init_from={base}", *overrides)
    train(
        folder / "scratch", f"{story.tune}:scratch", f"--config.tokenizer={tokenizer}", *overrides
    )

    from experiments.quickstart import measure, page

    results = dataclasses.replace(
        measure.measure(folder, story, questions),
        command=shlex.join(["tools/quickstart", *sys.argv[1:]]),
        seconds=time.perf_counter() - start,
    )
    (folder / "results.json").write_text(
        json.dumps(results.to_json(), indent=2) + "\n", encoding="utf-8"
    )
    print("\n" + page.text(results))
    path = page.write(folder, results)
    print(f"\n{results.seconds:.0f} s; the page: {path}, the numbers: {folder}/results.json")


def prepare_data(story: Story) -> None:
    """Fetches and builds what is missing; from then on nothing needs a network."""
    from tqdm import tqdm

    from research.data import builders
    from research.evaluation import tasks

    task = cli.load(tasks.Evaluation, story.evaluate)
    assert task.text is not None and task.choice is not None
    names = [source.name for source in (*task.text.sources, task.choice.source)]
    for name in tqdm(names, "data", unit="set", disable=None):
        builders.prepare_builder(name)


def train(workdir: Path, config: str, *overrides: str) -> None:
    run("train", "--config", config, "--workdir", workdir, *overrides)


def run(command: str, *arguments: object) -> None:
    """Runs one command of `graft` and ends with its exit status if it fails."""
    command_line = [command, *map(str, arguments)]
    print(f"\n$ graft {shlex.join(command_line)}", flush=True)
    status = run_program([sys.executable, "-m", "research.cli", *command_line]).returncode
    if status:
        sys.exit(
            f"quickstart: graft {command} ended with status {status}; what it printed says why"
        )


if __name__ == "__main__":
    signals.end_program("quickstart")
    main()

"""The whole line on real input: tokenizer, pretraining, tuning, evaluation, one table, one page.

    tools/quickstart [--workdir DIR] [--fresh] [--steps N]

Every stage is a command of its own, printed as it runs; a stage that is finished is not run again
(`--fresh` starts over). Results: DIR/results.json and DIR/report.html, by default in
runs/quickstart.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from research import config as door

CONFIGS = Path("configs/quickstart")
VOCABULARY = 2048
# table row -> (run, how evaluate.py asks it)
ASKED = {
    "base, zero-shot": ("pretrain", "zero_shot"),
    "base, few-shot": ("pretrain", "few_shot"),
    "tuned, full": ("full", "zero_shot"),
    "tuned, LoRA": ("lora", "zero_shot"),
    "from scratch": ("scratch", "zero_shot"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", default="runs/quickstart", metavar="DIR")
    parser.add_argument("--fresh", action="store_true", help="delete the folder and start over")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="so many steps a run: the line, not the learning"
    )
    arguments = parser.parse_args()
    started = time.perf_counter()
    folder = Path(arguments.workdir)
    if arguments.fresh and folder.exists():
        if not (folder / "tokenizer.json").exists():
            parser.error(f"--fresh would delete {folder}, which no quickstart made")
        shutil.rmtree(folder)
    prepare_data()
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.exists():
        run("research.train_tokenizer", "--config", CONFIGS / "pretrain.py",
            "--vocabulary", VOCABULARY, "--out", tokenizer)  # fmt: skip
    base = f"--config.init_from={folder / 'pretrain'}"
    words = f"--config.tokenizer={tokenizer}"
    short = []
    if arguments.steps:
        short = [f"--config.steps={arguments.steps}", "--config.schedule.warmup=0"]
    train(folder / "pretrain", "pretrain.py", words, *short)
    train(folder / "full", "tune.py:full", base, *short)
    train(folder / "lora", "tune.py:lora", base, *short)
    train(folder / "scratch", "tune.py:scratch", words, *short)

    from experiments.quickstart import measure, page

    results = measure.measure(folder, ASKED)
    results["seconds"] = time.perf_counter() - started
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print("\n" + page.text(results))
    path = page.write(folder, results)
    print(f"\n{results['seconds']:.0f} s; the page: {path}, the numbers: {folder}/results.json")


def prepare_data() -> None:
    """Fetches and builds what is missing; from then on nothing needs a network."""
    from tqdm import tqdm

    from research.data import builders
    from research.evaluation import tasks

    task = door.load(tasks.Evaluation, str(CONFIGS / "evaluate.py"))
    assert task.text is not None and task.choice is not None
    names = [source.name for source in (*task.text.sources, task.choice.source)]
    for name in tqdm(names, "data", unit="set", disable=None):
        builders.prepared(name)


def train(workdir: Path, config: str, *overrides: str) -> None:
    run("research.train", "--config", CONFIGS / config, "--workdir", workdir, *overrides)


def run(module: str, *arguments: object) -> None:
    """Runs one program of the project and ends with its exit status if it fails."""
    words = [module, *map(str, arguments)]
    print(f"\n$ python -m {shlex.join(words)}", flush=True)
    status = subprocess.run([sys.executable, "-m", *words]).returncode
    if status:
        sys.exit(f"quickstart: {module} ended with status {status}; what it printed says why")


if __name__ == "__main__":
    main()

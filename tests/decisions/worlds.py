"""A problem of colours, and a model that needs no compiler: it answers as a table says."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from research.data.sources import JsonlConfig
from research.decisions.problem import open_problem, read_task
from research.decisions.rows import Sizes
from research.decisions.ways import Base
from research.evaluation.multiple_choice import MultipleChoice
from research.evaluation.results import Answer, Cost, TaskResult
from research.evaluation.tasks import Evaluation
from research.text import tokenizer
from tests.helpers.tiny_run import COLOURS

BASE = Base("base", "nowhere")
SPLITS = {"train": range(12), "validation": range(20, 32), "test": range(40, 48)}


def write_colours(folder: Path, splits=SPLITS) -> MultipleChoice:
    """Rows in which the answer stands in the question, and the task that asks them."""
    for name, numbers in splits.items():
        rows = [
            {"prompt": f"roof {n} {colour}", "completion": colour}
            for n in numbers
            for colour in COLOURS
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = JsonlConfig("colours", str(folder / "{split}.jsonl"))
    return MultipleChoice(source, labels=COLOURS, reference="completion", batch_size=8)


def open_colours(folder: Path, world, task=None, **settings):
    """The problem, whose rows are written into the folder."""
    task = task or write_colours(folder)
    own = {"sizes": Sizes(validation=48, test=32)} | settings
    words = tokenizer_of(world)
    reading = read_task(Evaluation(tasks={"a": task}))
    return open_problem("colours", reading, folder / "rows", words, **own)


def tokenizer_of(world):
    return tokenizer.load(str(world.folder / "tokenizer.json"))


@dataclasses.dataclass
class Oracle:
    """Answers a share of the rows right, by the name of the way; counts what it is asked."""

    problem: object
    shares: dict
    seconds: float = 1.0
    default: float = 0.25

    def __post_init__(self):
        self.questions = []

    def check(self, way, splits):
        if self.shares.get(way.name) is None and way.name in self.shares:
            raise ValueError("its prompt is too long")

    def ask(self, way, split):
        self.questions.append((way.name, split))
        records = self.problem.records(split)
        share = self.shares.get(way.name, self.default)
        rng = np.random.default_rng([len(way.name), len(split), int(split[-1] == "2")])
        answers = [
            Answer(r["prompt"], "x", str(n), {"right": float(rng.random() < share)})
            for n, r in enumerate(records)
        ]
        tokens = 10 * (1 + len(way.shots))
        cost = Cost(flops=1e6 * tokens * len(records))
        return TaskResult(answers, 0, self.seconds * len(records), tokens * len(records), cost=cost)

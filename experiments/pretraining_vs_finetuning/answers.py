"""What the study answers beside its verdicts: labels that decide, what pretraining costs."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from research.config import cli, schema
from research.experiment import Experiment
from research.preflight import examine
from research.preflight.report import Report
from research.reports.tables import Column
from research.runtime.accelerators import plan_topology
from research.studies import Answer

LABELS = "data.sources[0].max_records"
Trials = Sequence[Mapping[str, Any]]
Curve = dict[int, float]  # labels -> mean share of right answers

# tokens of a large model's pretraining: Llama 3 (arXiv:2407.21783, section 1)
PRETRAINING_TOKENS = 15e12
PRETRAINING = "data.batch_size=1024"
# 4,000 pairs of 512 tokens, three times
TUNING_TOKENS = 4000 * 512 * 3
TUNING = ("data.batch_size=64", "data.sequence_length=512", "schedule.warmup=0")
BFLOAT16 = 'model.storage=[[".*", "bfloat16"]]'
RANKS = (1, 8, 16, 64)
# model -> its config, and where each is trained: that many chips or more hold it
LARGE = {
    "8B": ("configs/pretrain/llama3_8b.py", "v5p:8x8x8", "v5p:4x4x4"),
    "70B": ("configs/pretrain/llama3_70b.py", "v5p:8x8x8", "v5p:4x4x4"),
}


def work_out(trials: Trials) -> list[Answer]:
    """The sections of the study's page."""
    return [
        labels_that_pass(trials),
        labels_of_pretraining(trials),
        cost_of_pretraining(trials),
        share_of_lora(),
    ]


def curves(trials: Trials) -> dict[str, dict[str, Curve]]:
    """Task -> form -> its means over seeds, of the last stage."""
    qualities: dict[str, dict[str, dict[int, list[float]]]] = {}
    for trial in trials:
        if trial.get("stage") == "confirm" and trial.get("quality") is not None:
            forms = qualities.setdefault(trial["task"], {})
            points = forms.setdefault(trial["form"], {})
            points.setdefault(trial[LABELS], []).append(float(trial["quality"]))
    return {
        task: {
            form: {labels: statistics.mean(each) for labels, each in sorted(points.items())}
            for form, points in forms.items()
        }
        for task, forms in qualities.items()
    }


def passes(first: Curve, second: Curve) -> str:
    """From how many labels on the first lies above the second, on lines between what is measured.

    Lines are straight over the logarithm of labels.
    """
    counts = sorted(first.keys() & second.keys())
    gaps = [first[n] - second[n] for n in counts]
    if gaps[-1] <= 0:
        return "never"
    start = max((i for i, gap in enumerate(gaps) if gap <= 0), default=None)
    if start is None:
        return f"from {counts[0]} on"
    share = -gaps[start] / (gaps[start + 1] - gaps[start])
    return f"{_between(counts[start], counts[start + 1], share):.0f}"


def labels_for(curve: Curve, quality: float) -> float:
    """The fewest labels with which a curve reaches a quality; infinite if it does not."""
    points = sorted(curve.items())
    if points[0][1] >= quality:
        return points[0][0]
    for (before, low), (after, high) in itertools.pairwise(points):
        if low < quality <= high:
            return _between(before, after, (quality - low) / (high - low))
    return math.inf


def _between(low: int, high: int, share: float) -> float:
    return float(low * (high / low) ** share)


def labels_that_pass(trials: Trials) -> Answer:
    """From how many labels each way answers better than each other one."""
    lines = []
    for task, forms in curves(trials).items():
        for form, curve in forms.items():
            line = {"task": task, "way": form}
            for other, other_curve in forms.items():
                if other != form and len(curve.keys() & other_curve.keys()) > 1:
                    line[other] = passes(curve, other_curve)
            lines.append(line)
    names = list(dict.fromkeys(key for line in lines for key in line if key not in ("task", "way")))
    columns = [Column("task", "task"), Column("way", "this way passes")]
    return Answer(
        "At how many labels each way passes the others",
        "From that many labels on, the means over seeds of the line's way lie above those of the "
        "column's, on straight lines over the logarithm of labels; no interval: differences that "
        "seeds do not tell apart are in the verdicts above.",
        lines,
        columns + [Column(name, name) for name in names],
    )


def labels_of_pretraining(trials: Trials) -> Answer:
    """Data transferred (Hernandez 2021, section 2): labels that pretraining is worth."""
    lines = []
    for task, forms in curves(trials).items():
        if not {"full", "from scratch"} <= forms.keys():
            continue
        scratch = forms["from scratch"]
        for labels, quality in forms["full"].items():
            needed = labels_for(scratch, quality)
            is_reached = needed < math.inf
            least = f"over {max(scratch)}"
            lines.append(
                {
                    "task": task,
                    "labels": labels,
                    "quality": quality,
                    "needed": f"{needed:.0f}" if is_reached else least,
                    "worth": f"{needed - labels:.0f}"
                    if is_reached
                    else f"over {max(scratch) - labels}",
                }
            )
    return Answer(
        "What the pretraining is worth in labels",
        "How many labels a model from scratch needs to answer as the tuned base does, and how many "
        "more that is: the data transferred (Hernandez 2021, arXiv:2102.01293).",
        lines,
        [
            Column("task", "task"),
            Column("labels", "labels of the tuned base"),
            Column("quality", "its right answers", "%", 100, ".1f"),
            Column("needed", "labels from scratch"),
            Column("worth", "data transferred", "labels"),
        ],
    )


def cost_of_pretraining(trials: Trials) -> Answer:
    """FLOPs of a pretraining over those of a tuning: here, and at 8B and 70B by closed forms."""
    tuned = {form: _median(trials, form) for form in ("full", "LoRA")}
    base_flops, _ = _cost(_plan("configs/quickstart/pretrain.py", "v5e:1x1"))
    lines = [
        {
            "model": "here",
            "pretraining": base_flops,
            **tuned,
            "orders": math.log10(base_flops / tuned["LoRA"]),
        }
    ]
    for model, (file, large, small) in LARGE.items():
        reports = {
            "pretraining": _plan(file, large, PRETRAINING_TOKENS, PRETRAINING),
            "full": _plan(file, small, TUNING_TOKENS, *TUNING),
            "LoRA": _plan(file, small, TUNING_TOKENS, *TUNING, BFLOAT16, _lora(16)),
        }
        line: dict[str, Any] = {"model": model}
        for way, report in reports.items():
            line[way], line[f"{way} money"] = _cost(report)
        lines.append(line | {"orders": math.log10(line["pretraining"] / line["LoRA"])})
    return Answer(
        "What pretraining costs over tuning",
        "Model FLOPs, and money at best (a roofline on v5p chips, prices of configs/prices.json). "
        "The large models: 15T tokens of text, as Llama 3 read, against 4,000 pairs of 512 tokens "
        "read three times; here: what the study's base and its trials read.",
        lines,
        [
            Column("model", "model"),
            Column("pretraining", "pretraining", "FLOPs", format=".1e"),
            Column("full", "full tuning", "FLOPs", format=".1e"),
            Column("LoRA", "LoRA", "FLOPs", format=".1e"),
            Column("orders", "pretraining over LoRA", "orders of magnitude", format=".1f"),
            Column("pretraining money", "pretraining", "dollars", format=",.0f"),
            Column("full money", "full tuning", "dollars", format=",.2f"),
            Column("LoRA money", "LoRA", "dollars", format=",.2f"),
        ],
    )


def share_of_lora() -> Answer:
    """Whether LoRA trains 0.1 to 1% of the parameters, by its rank and the model's size."""
    files = {"here": "configs/quickstart/pretrain.py"} | {m: f for m, (f, *_) in LARGE.items()}
    lines = []
    for model, file in files.items():
        line: dict[str, Any] = {"model": model}
        for rank in RANKS:
            work = _plan(file, "v5e:1x1", None, _lora(rank)).workload
            assert work is not None  # one device shares no batch
            line[f"rank {rank}"] = work.trainable_parameters / work.parameters
        lines.append(line)
    return Answer(
        "LoRA's share of the parameters",
        "Trained parameters of LoRA on every matrix of attention and MLP, by shapes.",
        lines,
        [Column("model", "model")]
        + [Column(f"rank {rank}", f"rank {rank}", "%", 100, ".2f") for rank in RANKS],
    )


def _median(trials: Trials, form: str) -> float:
    flops = [t["flops"] for t in trials if t["form"] == form and t["stage"] == "confirm"]
    return float(statistics.median(flops))


def _lora(rank: int) -> str:
    return f'method={{"kind": "lora", "rank": {rank}}}'


def _plan(file: str, topology: str, tokens: float | None = None, *overrides: str) -> Report:
    """The closed form of a run, of so many tokens where they are given."""
    experiment = cli.load(Experiment, file, overrides)
    if tokens is not None:
        per_step = experiment.data.batch_size * experiment.data.sequence_length
        steps = math.ceil(tokens / per_step)
        experiment = cli.load(Experiment, file, (*overrides, f"steps={steps}"))
    prices = schema.load_json(examine.Prices, "configs/prices.json")
    return examine.plan(experiment, plan_topology(topology), prices)


def _cost(report: Report) -> tuple[float, float | None]:
    """Model FLOPs of a run, and its money."""
    work, estimate = report.workload, report.estimate
    if work is None or estimate is None:
        raise ValueError(f"{report.memory.why}")
    return work.model_flops * work.steps, estimate.money

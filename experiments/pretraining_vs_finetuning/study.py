"""Pretraining and every way to tune: from 10 labels to 4,000, right ones and wrong ones."""

from typing import Any

from configs.studies.labels import LONGER, LORA, MAKES, SCRATCH, SHOTS, SMOLLM2, task
from research import studies
from research.studies import Comparison, Form, Stage, Study, Sweep, axis, product, variants

LABELS = axis("data.sources[0].max_records", 10, 40, 160, 640, 4000)
TASKS = {"licences": task("licences"), "diabetes": task("diabetes")}
WRONG = {f"licences, {share:.0%} wrong": task("licences", share) for share in (0.1, 0.3)}
FULL, ADAPTERS, PROMPTS = (1e-3, 2e-3, 4e-3), (1e-3, 2.5e-3, 5e-3), (1e-2, 3e-2, 1e-1)
QUALITY: Any = dict(metric="quality", goal="highest", across="max_records")
FORMS = {
    "from scratch": Form(SCRATCH, FULL),
    "full": Form({}, FULL),
    "LoRA": Form(LORA, ADAPTERS),
    "adapter": Form({"method": {"kind": "bottleneck", "width": 32}}, ADAPTERS),
    "prompt": Form({"method": {"kind": "prompt", "length": 20, "start": "vocabulary"}}, PROMPTS),
    "full, longer base": Form(LONGER, FULL),
    "LoRA, longer base": Form(LONGER | LORA, ADAPTERS),
    "LoRA, SmolLM2": Form(SMOLLM2 | LORA, (5e-4, 1e-3, 2e-3)),
    "three examples in the prompt": Form(SHOTS, way="prompted"),
    "TF-IDF": Form(way="tfidf_linear"),
}


def is_asked(form: str, point: Any) -> bool:
    labels = point[LABELS.keys[0]]
    if "wrong" in point["task"]:
        return labels >= 160 and form in ("from scratch", "full", "LoRA", "TF-IDF")
    other_base, is_licences = form.partition(", ")[2], point["task"] == "licences"
    return not other_base or (is_licences and (other_base != "SmolLM2" or labels in (40, 640)))


def get_study() -> Study:
    return Study(
        claim="Pretraining saves labels, and LoRA needs no more of them than full tuning",
        source="data transferred: Hernandez 2021, arXiv:2102.01293; Hu 2021, arXiv:2106.09685",
        refuted_if="from scratch answers as well at equal labels, or LoRA lies 10 points behind",
        config="configs/studies/labels.py",
        forms=FORMS,
        axes=product(variants("task", **TASKS, **WRONG), LABELS),
        only=is_asked,
        seed_keys=(*studies.SEED_KEYS, "data.sources[0].sample_seed"),
        accepted_code=("aa8197f82430db20", "f717666410cc895e"),
        sweep=Sweep(factor=2, max_growth=7),
        stages=(Stage("screen", (0,), {"steps": 60}, evaluated=False), Stage("confirm", (1, 2, 3))),
        bases=MAKES,
        evaluation="configs/studies/evaluate.py",
        answers="experiments/pretraining_vs_finetuning/answers.py:work_out",
        comparisons=(
            Comparison("full", "from scratch", **QUALITY),
            Comparison("full", "from scratch", across="max_records"),
            Comparison("LoRA", "full", margin=0.1, **QUALITY),
            Comparison("full", "TF-IDF", **QUALITY),
            Comparison("full, longer base", "full", **QUALITY),
        ),
    )

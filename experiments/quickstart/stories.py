"""The quickstart's two stories: one from a base of its own, one from a real one."""

from __future__ import annotations

from dataclasses import dataclass

# table row -> (run, argument of the evaluation's config); "base" stands for the base's run
TABLE_ROWS = {
    "base, zero-shot": ("base", "zero_shot"),
    "base, few-shot": ("base", "few_shot"),
    "tuned, full": ("full", "zero_shot"),
    "tuned, LoRA": ("lora", "zero_shot"),
    "from scratch": ("scratch", "zero_shot"),
}


@dataclass(frozen=True)
class Story:
    """One line from a base to a table.

    Attributes:
      tune: the config of the runs `full`, `lora` and `scratch`.
      evaluate: the config of every model's evaluation.
      pretrain: the config of the base; None: the base is imported.
      source: what is imported, as `graft convert import --from` takes it.
      caveat: about the base, to stand beside any number taken from it.
    """

    tune: str
    evaluate: str
    pretrain: str | None = None
    source: str | None = None
    caveat: str = ""

    @property
    def base(self) -> str:
        """The folder of the base's run."""
        return "pretrain" if self.pretrain else "base"

    @property
    def table_rows(self) -> dict[str, tuple[str, str]]:
        """Table row -> (run's folder, the argument of the evaluation's config)."""
        return {
            row: (self.base if run == "base" else run, way)
            for row, (run, way) in TABLE_ROWS.items()
        }


STORIES = {
    "own": Story(
        pretrain="configs/quickstart/pretrain.py",
        tune="configs/quickstart/tune.py",
        evaluate="configs/quickstart/evaluate.py",
    ),
    "smollm2": Story(
        source="smollm2",
        tune="configs/quickstart/smollm2_tune.py",
        evaluate="configs/quickstart/smollm2_evaluate.py",
        caveat="The base, SmolLM2-135M-Instruct, is already instruction-tuned, and its weights "
        "were rounded to 4 bits before they came here: so is every number taken from it.",
    ),
}

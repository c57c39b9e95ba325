"""SmolLM2-135M-Instruct tuned on licence notices, once for each method of experiments/methods.

    graft convert import --from smollm2 --out runs/smollm2
    graft train --config configs/methods/smollm2.py:dora --workdir runs/dora
    graft convert quantize --from runs/smollm2 --to nf4 --out runs/smollm2_nf4
    graft train --config configs/methods/smollm2.py:qlora_nf4 --workdir runs/qlora

Every form has the same data, steps and optimizer; its rates are those that the study's sweep begins
with (graft study run experiments/methods).

Expected, each form at its best rate, mean and Student's 95% interval over three seeds, of 120 test
notices: full 67% [46, 89] right, LoRA 60% [44, 76], DoRA 56% [29, 83], QLoRA in nf4 63% [44, 82],
the base alone 35%; steps of 0.7 to 2.2 s. experiments/methods/README.md has all forms.
Hardware: two CPU cores (AVX-512), Python 3.11, jax 0.10.2.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs.finetune import smollm2_lora

LABELS = ("gpl-2.0-plus", "apache-2.0", "proprietary-license", "mit", "lgpl-2.1-plus", "bsd-new")
LORA = dict(kind="lora", rank=16, alpha=32.0)


class Form(NamedTuple):
    """One line of the study."""

    method: dict[str, Any]
    # the learning rates that a sweep begins with
    learning_rates: tuple[float, ...]
    # what else it changes in the config
    overrides: dict[str, Any] = {}
    # how the base is stored: nf4, int8; None: float32
    storage: str | None = None


FORMS = {
    "full": Form(dict(kind="full"), (3e-5, 1e-4, 3e-4)),
    "last_layers": Form(
        dict(kind="partial", patterns=(r"layers/2[6-9]/.*", "final_norm/scale")),
        (3e-4, 1e-3, 3e-3),
    ),
    "norms": Form(dict(kind="partial", patterns=(r".*norm/scale",)), (1e-3, 3e-3, 1e-2)),
    "lora": Form(LORA, (3e-4, 1e-3, 3e-3)),
    "lora_plus": Form(
        LORA, (1e-4, 3e-4, 1e-3), dict(learning_rate_rules=((r".*/site/lora/b", 16.0),))
    ),
    "rslora": Form(LORA | dict(rank=64, rank_stabilized=True), (1e-4, 3e-4, 1e-3)),
    "pissa": Form(LORA | dict(alpha=16.0, start="pissa"), (1e-4, 3e-4, 1e-3)),
    "qlora_nf4": Form(LORA, (3e-4, 1e-3, 3e-3), storage="nf4"),
    "qlora_int8": Form(LORA, (3e-4, 1e-3, 3e-3), storage="int8"),
    "dora": Form(dict(kind="dora", rank=16, alpha=32.0), (3e-4, 1e-3, 3e-3)),
    "ia3": Form(dict(kind="ia3"), (3e-3, 1e-2, 3e-2)),
    "vera": Form(dict(kind="vera", rank=256), (3e-3, 1e-2, 3e-2)),
    "loha": Form(dict(kind="loha", rank=16, alpha=16.0), (3e-4, 1e-3, 3e-3)),
    "houlsby": Form(dict(kind="bottleneck", width=64), (3e-4, 1e-3, 3e-3)),
    "pfeiffer": Form(
        dict(kind="bottleneck", width=64, targets=(r"layers/\d+/mlp_output",)),
        (3e-4, 1e-3, 3e-3),
    ),
    "parallel": Form(
        dict(kind="bottleneck", width=64, placement="parallel", scale=4.0),
        (3e-4, 1e-3, 3e-3),
    ),
    "prompt": Form(dict(kind="prompt", length=20, start="vocabulary"), (3e-3, 1e-2, 3e-2)),
    "prompt_random": Form(dict(kind="prompt", length=20, start="random"), (3e-3, 1e-2, 3e-2)),
    "prompt_text": Form(
        dict(kind="prompt", length=20, start="text", text=f"Licence: {' '.join(LABELS)}"),
        (3e-3, 1e-2, 3e-2),
    ),
    # trains so little that what 32 steps teach it does not show in answers
    "prompt_text_320": Form(
        dict(kind="prompt", length=20, start="text", text=f"Licence: {' '.join(LABELS)}"),
        (3e-2, 9e-2, 0.3),
        dict(steps=320),
    ),
    "prompt_labels": Form(
        dict(kind="prompt", length=20, start="labels", labels=LABELS), (3e-3, 1e-2, 3e-2)
    ),
    "prefix": Form(dict(kind="prefix", length=20), (3e-3, 1e-2, 3e-2)),
    "prefix_mlp": Form(
        dict(kind="prefix", length=20, reparameterized=True, mlp_width=256), (3e-4, 1e-3, 3e-3)
    ),
    "lora_and_prompt": Form(
        dict(kind="several", of=(LORA, dict(kind="prompt", length=20))), (3e-4, 1e-3, 3e-3)
    ),
}


def get_config(name: str = "lora") -> ConfigDict:
    if name not in FORMS:
        raise ValueError(f"smollm2.py:{name}: there are {', '.join(FORMS)}")
    form = FORMS[name]
    config = smollm2_lora.get_config()
    config.steps = 32
    if form.storage:
        config.init_from = f"{smollm2_lora.BASE}_{form.storage}"
    config.method = form.method
    config.schedule.learning_rate = form.learning_rates[1]
    config.schedule.warmup = 5
    config.compute.compute_dtype = "bfloat16"
    config.data.batch_size = 4
    # what rates are chosen by
    config.evaluate_split = "validation"
    config.evaluate_tokens = 6_000
    config.update(form.overrides)
    return config

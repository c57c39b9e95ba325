"""Which modules an adapter of PEFT's is for: as PEFT says, and nothing that takes forever."""

import re
import types

import pytest

from research.interop.fields import UnsupportedModelError
from research.interop.peft import targets as peft_targets

SHORT = {"q_proj": "attention/query", "v_proj": "attention/value", "down_proj": "mlp/down"}
PARTS = {"q_proj": "self_attn", "v_proj": "self_attn", "down_proj": "mlp"}
MODULES = {
    f"model.layers.{layer}.{PARTS[name]}.{name}": (f"layers/{layer}/{ours}",)
    for layer in range(12)
    for name, ours in SHORT.items()
} | {"model.embed_tokens": ("embedding",), "lm_head": ("head",)}

CONFIGS = [
    dict(target_modules=["q_proj", "down_proj"]),
    dict(target_modules=["model.layers.1.self_attn.v_proj", "lm_head"]),
    dict(target_modules=["proj"]),
    dict(target_modules=r".*\.(0|11)\.self_attn\.[qv]_proj"),
    dict(target_modules=r"model\.layers\.\d+\.(?:mlp|self_attn)\..*_proj$"),
    dict(target_modules=["q_proj", "embed_tokens"], layers_to_transform=[1, 10]),
    dict(target_modules=["q_proj", "model.layers.5.mlp.down_proj"], layers_to_transform=1),
    dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers"),
    dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern=["h", "blocks"]),
    dict(target_modules=["q_proj", "v_proj"], exclude_modules=["layers.1.self_attn.q_proj"]),
    dict(target_modules=["q_proj", "v_proj"], exclude_modules=r".*\.\d\.self_attn\.v_proj"),
]


@pytest.mark.heavy
@pytest.mark.parametrize("content", CONFIGS, ids=str)
def test_modules_are_those_that_peft_takes(content):
    from peft.tuners import tuners_utils

    every = dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
    config = types.SimpleNamespace(**every | content)
    theirs = {
        name
        for name in MODULES
        if (match := tuners_utils.check_target_module_exists(config, name))
        and not isinstance(match, tuners_utils._ExcludedModule)
    }
    assert peft_targets.target_names(content, MODULES, "here") == theirs


def test_tensors_that_are_missing_or_too_many_are_named():
    content = {"target_modules": ["q_proj"], "layers_to_transform": [0, 3]}
    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 3)]
    peft_targets.check(content, MODULES, names, "here")
    peft_targets.check({"target_modules": None}, MODULES, names[:1], "here")
    for present, message in (
        (names[:1], r"lacks all tensors of model.layers.3.self_attn.q_proj, .* .1 of 2 modules"),
        ([*names, "lm_head"], "has tensors of lm_head, which target_modules does not name"),
        ([], "holds no tensors of an adapter"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            peft_targets.check(content, MODULES, present, "here")
    linears = [name for name in MODULES if name.startswith("model.layers.")]
    peft_targets.check({"target_modules": "all-linear"}, MODULES, linears, "here")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (r"(.*)*x", "could take forever to match"),
        (r".*.*.*.*.*.*x", "could take forever to match"),
        (r"(\w+|x)+y", "could take forever to match"),
        (r"(model", "is no pattern"),
        ([3], "give names in a list"),
    ],
)
def test_patterns_that_cannot_be_matched_safely_are_refused(targets, message):
    with pytest.raises(UnsupportedModelError, match=f"here: target_modules.*{re.escape(message)}"):
        peft_targets.check({"target_modules": targets}, MODULES, ["lm_head"], "here")

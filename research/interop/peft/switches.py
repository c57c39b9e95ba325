"""The fields of an `adapter_config.json`, kind by kind: read, without effect, or refused.

A field that is in none of these tables is refused by name, so that a new switch of PEFT's is never
passed over. Checked before any tensor, the kind first, so that the first error is the true one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from research import tree
from research.interop.fields import UnsupportedModelError
from research.interop.peft import prompts

# read elsewhere in this room, or of no effect on what a saved adapter computes: book-keeping, how
# training started, what it dropped, what it saved memory with
_EVERYWHERE = (
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "target_modules exclude_modules modules_to_save"
)
_LAYERS = "layers_to_transform layers_pattern fan_in_fan_out"
KNOWN: dict[str, frozenset[str]] = {
    kind: frozenset(f"{_EVERYWHERE} {names}".split())
    for kind, names in {
        "LORA": f"""
            {_LAYERS} r lora_alpha rank_pattern alpha_pattern use_rslora use_dora lora_dropout bias
            trainable_token_indices ensure_weight_tying init_lora_weights loftq_config eva_config
            corda_config lora_ga_config velora_config megatron_core qalora_group_size runtime_config
            """,
        "IA3": "feedforward_modules fan_in_fan_out init_ia3_weights",
        "OFT": f"""
            {_LAYERS} r oft_block_size module_dropout init_weights use_cayley_neumann bias coft
            block_share eps num_cayley_neumann_terms
            """,
        "VERA": f"""
            {_LAYERS} r d_initial save_projection projection_prng_key vera_dropout init_weights bias
            """,
        "LOHA": f"""
            {_LAYERS} r alpha rank_pattern alpha_pattern rank_dropout module_dropout init_weights
            use_effective_conv2d
            """,
        "PROMPT_TUNING": """
            num_virtual_tokens token_dim num_transformer_submodules num_attention_heads num_layers
            prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs
            """,
        "PREFIX_TUNING": """
            num_virtual_tokens token_dim num_transformer_submodules num_attention_heads num_layers
            encoder_hidden_size prefix_projection init_weights
            """,
    }.items()
}
# switches that change what is computed, and that Graft has not
REFUSED: dict[str, str] = {
    "layer_replication": "a model with layers of the base several times",
    "use_qalora": "inputs pooled in groups",
    "lora_bias": "a bias beside the product",
    "target_parameters": "adapters of parameters that are no linears",
    "use_bdlora": "block-diagonal factors",
    "arrow_config": "a router over adapters",
    "kasa_config": "a change of the base's weights",
    "monteclora_config": "random factors",
    "alora_invocation_tokens": "an adapter that acts from given tokens on",
    "megatron_config": "layers of Megatron",
}
# starts that leave the base as it is; others take the start out of the base's weights
_STARTS = ("gaussian", "eva", "orthogonal", "mica")
_TASKS = (None, "CAUSAL_LM")
_FLAGS = ("use_rslora", "use_dora", "ensure_weight_tying")


def check(content: Mapping[str, Any], where: str) -> None:
    """Refuses a kind, a task or a switch that Graft does not have.

    Raises:
      UnsupportedModelError: naming it.
    """
    kind = content.get("peft_type")
    if kind is None and ("lora_parameters" in content or "fine_tune_type" in content):
        raise UnsupportedModelError(
            f"{where} is of an adapter of MLX: fuse it there (mlx_lm.fuse) and import the model"
        )
    if kind not in KNOWN:
        raise UnsupportedModelError(f"{where}: peft_type {kind!r}; Graft reads {', '.join(KNOWN)}")
    if content.get("task_type") not in _TASKS:
        raise UnsupportedModelError(
            f"{where}: task_type is {content['task_type']!r}; Graft reads adapters of CAUSAL_LM"
        )
    for name, value in content.items():
        if name in KNOWN[kind] or _is_neutral(value):
            continue
        if name in REFUSED:
            raise UnsupportedModelError(
                f"{where}: {name} is {value!r:.60}, {REFUSED[name]}; Graft has no such thing"
            )
        near = tree.nearest(name, [*KNOWN[kind], *REFUSED], 1)
        raise UnsupportedModelError(
            f"{where}: {name} is {value!r:.60}; Graft knows no such field of {kind} (nearest: "
            f"{near}), and it may change what is computed. If it does not, take it out of the file"
        )
    _check_start(content, where)
    if kind in prompts.KINDS and content.get("modules_to_save"):
        raise UnsupportedModelError(f"{where}: modules_to_save beside {kind}; merge them in PEFT")
    biases = (None, "none", "all", "lora_only") if kind == "LORA" else (None, "none")
    if content.get("bias") not in biases:
        raise UnsupportedModelError(f"{where}: bias is {content['bias']!r:.60} of {kind}")
    for name in _FLAGS:
        if content.get(name) not in (None, True, False):
            raise UnsupportedModelError(
                f"{where}: {name} is neither true nor false: {content[name]!r:.60}"
            )


def _is_neutral(value: Any) -> bool:
    """Whether a field says nothing, whatever it is: null, false, empty or "none". A number never
    does: 0 turns some settings off, and is a factor in others."""
    return value is None or value is False or value in ("", "none", [], {})


def _check_start(content: Mapping[str, Any], where: str) -> None:
    start = content.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _STARTS:
        raise UnsupportedModelError(
            f"{where}: init_lora_weights is {start!r}, which changed the base's weights; save the "
            "adapter in PEFT with path_initial_model_for_weight_conversion, as a plain LoRA"
        )

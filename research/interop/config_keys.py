"""Keys of a `config.json` that no family reads: without effect, neutral, or refused by name.

A key that a family reads is honored. Of the rest, some cannot change what a model computes; some
must have the value at which they change nothing; and any other may be a switch of an architecture
that only looks like one of ours, so it is refused.
"""

from __future__ import annotations

import re
from typing import Any

from research import tree
from research.interop.fields import Fields, UnsupportedModelError

# book-keeping, generation's defaults, training's settings (a run has its own), and how it is run
WITHOUT_EFFECT = frozenset(
    """
    _name_or_path _commit_hash _attn_implementation _attn_implementation_autoset
    _attn_implementation_internal _experts_implementation _sliding_window_pattern
    architectures model_type dtype torch_dtype transformers_version auto_map
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id mask_token_id
    decoder_start_token_id tokenizer_class use_cache cache_implementation return_dict
    output_past output_hidden_states output_attentions output_scores return_dict_in_generate
    torchscript use_bfloat16 pretraining_tp chunk_size_feed_forward gradient_checkpointing
    low_cpu_mem_usage attn_implementation use_flash_attention use_flash_attention_2 use_flash_attn
    finetuning_task problem_type id2label label2id num_labels prefix task_specific_params
    initializer_range initializer_factor reorder_and_upcast_attn tf_legacy_loss license language
    max_position_embeddings original_max_position_embeddings max_sequence_length seq_length
    model_max_length tokenizer_model_max_length n_ctx
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens max_window_layers summary_type summary_use_proj summary_activation
    summary_proj_to_labels rope_parameters rope_scaling rope_theta transformers.js_config
    """.split()
)
_WITHOUT_EFFECT = re.compile(r".*_dropout(_prob)?|.*_pdrop|unsloth_\w+")
# the values at which a key changes nothing, for families that do not read it
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "rope_interleaved": (False,),
    "is_llama_config": (True,),
    "partial_rotary_factor": (1.0,),
    "hidden_act": ("silu",),
    "pruned_heads": ({},),
    "quantization_config": ({},),
}
_READ_OTHERWISE = {"gemma2": {"hidden_act": ("gelu_pytorch_tanh",)}}
_READ_OTHERWISE["gemma3_text"] = _READ_OTHERWISE["gemma2"]


def refuse_unread(fields: Fields, kind: str) -> None:
    """Refuses a key that may change what a model computes and that its family did not read.

    Args:
      fields: those of a `config.json`, after the family has read it.
      kind: the family's.

    Raises:
      UnsupportedModelError: naming the key, and the nearest one that is known.
    """
    neutral = NEUTRAL | _READ_OTHERWISE.get(kind, {})
    for name, value in fields.unread().items():
        if name in WITHOUT_EFFECT or _WITHOUT_EFFECT.fullmatch(name):
            continue
        if name not in neutral:
            known = [*fields.names_read, *neutral, *WITHOUT_EFFECT]
            raise UnsupportedModelError(
                f"{fields.where}: {name} is {value!r:.60}; Graft knows no such key of {kind} "
                f"(nearest: {tree.nearest(name, known, 1)}), and it may change what is computed. "
                "If it does not, take it out of the file"
            )
        if value not in neutral[name]:
            choices = " or ".join(map(repr, neutral[name]))
            raise UnsupportedModelError(
                f"{fields.where}: {name} is {value!r:.60}; Graft's {kind} computes {choices}"
            )

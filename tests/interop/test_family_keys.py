"""Keys of a config that one family alone reads, or passes over."""

import pytest

from research.interop import huggingface
from research.interop.families import FAMILIES
from research.interop.fields import UnsupportedModelError
from tests.interop.test_broken_files import SHAPE


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is T"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("mistral", {"attention_bias": True}, "attention_bias is True"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "use_sliding_window is false"),
        ("qwen2", {"use_mrope": True}, "use_mrope is True"),
        (
            "gemma3_text",
            {
                "rope_local_base_freq": 1e4,
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                },
            },
            "rope_local_base_freq is 10000, and rope_theta 20000",
        ),
        ("gemma3_text", {"_sliding_window_pattern": 2}, "_sliding_window_pattern is 2, which"),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping is 5.0"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 50.0}}, "rope_parameters has rope_th"),
        ("gemma3_text", {"rope_parameters": [1]}, r"rope_parameters is no object: \[1\]"),
        (
            "gemma3_text",
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            "rope_scaling has type, which transformers 5 does not read",
        ),
    ],
)
def test_a_key_of_a_family_that_could_change_what_is_computed_is_refused(kind, changes, match):
    content = {k: v for k, v in SHAPE.items() if k != "model_type"} | {"head_dim": 8}
    huggingface.read_config(FAMILIES[kind], content, "config.json")
    with pytest.raises(UnsupportedModelError, match=match):
        huggingface.read_config(FAMILIES[kind], content | changes, "config.json")

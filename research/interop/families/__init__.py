"""Families of base models: one file each, and a line here."""

from research.interop.families import gemma2, gemma3, gpt2, llama, mistral, phi3, qwen2, qwen3
from research.interop.family import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.kind: module.FAMILY
    for module in (llama, mistral, qwen2, qwen3, gemma2, gemma3, gpt2, phi3)
}

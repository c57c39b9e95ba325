"""Every method in every form that differs in code, by name."""

from research.methods import (
    IA3,
    Bank,
    Bottleneck,
    DoRA,
    Full,
    LoRA,
    Method,
    Partial,
    Prefix,
    Prompt,
    Several,
    VeRA,
)
from research.methods.bottleneck import PFEIFFER
from research.methods.loha import LoHa
from research.methods.lora import EVERY_LINEAR
from tests.helpers import tiny

# an untied head, so that whatever is attached to a weight can be merged into it
SHAPE = tiny.config(tie_embeddings=False)
CASES: dict[str, Method] = {
    "lora": LoRA(rank=4),
    "lora-patterns": LoRA(
        rank=4,
        ranks=((r"layers/1/.*", 2), (r".*/mlp/\w+", 8)),
        alphas=((r".*/query", 4.0),),
        rank_stabilized=True,
    ),
    "lora-ends": LoRA(targets=(EVERY_LINEAR, "embedding", "head"), rank=4),
    "pissa": LoRA(rank=4, alpha=4.0, start="pissa"),
    "dora": DoRA(rank=4),
    "ia3": IA3(),
    "houlsby": Bottleneck(width=8),
    "pfeiffer": Bottleneck(targets=(PFEIFFER,), width=8),
    "parallel": Bottleneck(width=8, placement="parallel", activation="relu", scale=4.0),
    "vera": VeRA(rank=8),
    "loha": LoHa(rank=4),
    "prompt": Prompt(length=3),
    "prompt-random": Prompt(length=3, start="random"),
    "prompt-text": Prompt(length=3, start="text", text="ab", tokens=((5,), (9,))),
    "prompt-labels": Prompt(length=3, start="labels", labels=("a", "bc"), tokens=((5,), (9, 4))),
    "prefix": Prefix(length=3),
    "prefix-mlp": Prefix(length=3, reparameterized=True, mlp_width=8),
}
# what changes weights of the base, and methods together
BESIDE: dict[str, Method] = {
    "full": Full(),
    "last-layers": Partial((r"layers/2/.*", "final_norm/.*")),
    "biases": Partial((".*/bias",)),
    "lora-and-prompt": Several(of=(LoRA(rank=4), Prompt(length=3))),
}
BANKS: dict[str, Method] = {
    f"bank of {case}": Bank(of=CASES[case], names=("a", "b"))
    for case in ("lora-ends", "prefix-mlp")
}
LINEARS = ("query", "key", "value", "output", "up", "down")
BIASED = tiny.config(tie_embeddings=False, biases=(*LINEARS, "gate"))
# bases that differ from Llama in whatever a method may meet
FAMILIES = {
    "gemma": tiny.config(
        tie_embeddings=False,
        biases=(*LINEARS, "gate"),
        windows=(6, 0),
        post_norms=True,
        head_norms=True,
        embedding_scale=2.0,
    ),
    "gpt2": tiny.config(
        tie_embeddings=False,
        biases=LINEARS,
        gated=False,
        norm="layer",
        activation="gelu_tanh",
        learned_positions=64,
    ),
}
# these begin as the base: to the bit, but for rounding, and not at all
SERIAL = ("houlsby", "pfeiffer", "parallel")
EXACT = ("lora", "lora-patterns", "lora-ends", "ia3", *SERIAL, "vera", "loha")
ROUNDED = {"dora": 1e-6, "pissa": 1e-5}
OTHER = tuple(name for name in CASES if name not in (*EXACT, *ROUNDED))
MERGED = ("lora", "lora-patterns", "lora-ends", "pissa", "dora", "ia3", "vera", "loha")

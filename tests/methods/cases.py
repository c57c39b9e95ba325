"""Every method in every form that differs in code, by name, with what tests have to know of it.

A new method is one entry of CASES: every test of methods, costs, sums, merging and learning takes
its cases from here.
"""

import dataclasses

from research.methods import (
    EWC,
    IA3,
    LISA,
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
from research.methods.adalora import AdaLoRA
from research.methods.bottleneck import PFEIFFER
from research.methods.l2_sp import L2SP
from research.methods.loha import LoHa
from research.methods.lora import EVERY_LINEAR
from research.methods.oft import OFT
from tests.helpers import tiny


@dataclasses.dataclass(frozen=True)
class Case:
    """A method, and what is true of it on SHAPE.

    Attributes:
      start: how many roundings in a row lie between its first logits and the base's; 0: they are
        the same to the bit; None: it does not start as the base.
      merges: whether it can be merged into weights.
      parameters: how many train.
      learning_rate: one at which it learns the task of tests/training/test_loop.py; None where
        another form of the method does.
      studied: whether experiments/methods has a form of the method.
    """

    method: Method
    start: int | None
    merges: bool
    parameters: int
    learning_rate: float | None = None
    studied: bool = True


# an untied head, so that whatever is attached to a weight can be merged into it
SHAPE = tiny.config(tie_embeddings=False)
# sides of SHAPE's weights: width D, MLP F, keys and values K, vocabulary V
D, F, K, V, LAYERS = 32, 48, 16, 64, 3
ATTENTION = ((D, D), (D, K), (D, K), (D, D))
MLP = ((D, F), (D, F), (F, D))
LINEAR_SIDES = (*ATTENTION, *MLP)
OUTPUTS = sum(outputs for _, outputs in LINEAR_SIDES)
SIDES = sum(inputs + outputs for inputs, outputs in LINEAR_SIDES)
SMALL_MLP = (D + 1) * 8 + (8 + 1) * D

CASES: dict[str, Case] = {
    "lora": Case(LoRA(rank=4), 0, True, LAYERS * 4 * SIDES, 3e-2),
    "lora-patterns": Case(
        LoRA(
            rank=4,
            ranks=((r"layers/1/.*", 2), (r".*/mlp/\w+", 8)),
            alphas=((r".*/query", 4.0),),
            rank_stabilized=True,
        ),
        start=0,
        merges=True,
        parameters=2 * SIDES + 2 * (4 * sum(map(sum, ATTENTION)) + 8 * sum(map(sum, MLP))),
    ),
    "lora-ends": Case(
        LoRA(targets=(EVERY_LINEAR, "embedding", "head"), rank=4),
        start=0,
        merges=True,
        parameters=LAYERS * 4 * SIDES + 2 * 4 * (V + D),
    ),
    "pissa": Case(
        LoRA(rank=4, alpha=4.0, start="pissa"),
        start=tiny.ROUNDINGS,
        merges=True,
        parameters=LAYERS * 4 * SIDES,
        learning_rate=1e-2,
    ),
    "dora": Case(DoRA(rank=4), tiny.ROUNDINGS, True, LAYERS * (4 * SIDES + OUTPUTS), 3e-2),
    "ia3": Case(IA3(), 0, True, LAYERS * (2 * K + F), 0.3),
    "houlsby": Case(Bottleneck(width=8), 0, False, LAYERS * 2 * SMALL_MLP, 3e-2),
    "pfeiffer": Case(Bottleneck(targets=(PFEIFFER,), width=8), 0, False, LAYERS * SMALL_MLP),
    "parallel": Case(
        Bottleneck(width=8, placement="parallel", activation="relu", scale=4.0),
        start=0,
        merges=False,
        parameters=LAYERS * 2 * SMALL_MLP,
        learning_rate=3e-2,
    ),
    "vera": Case(VeRA(rank=24), 0, True, LAYERS * (7 * 24 + OUTPUTS), 0.3),
    "loha": Case(LoHa(rank=4), 0, True, 2 * LAYERS * 4 * SIDES, 3e-2),
    # blocks of 4 x 4, of which 6 entries train
    "oft": Case(OFT(block_size=4), 0, True, LAYERS * (6 * (D // 4) + F // 4) * 6, 0.1, False),
    "adalora": Case(
        AdaLoRA(15, prune_from=5, every=5, rank=4, target_rank=2, orthogonality=0.1),
        start=0,
        merges=True,
        parameters=LAYERS * 4 * (SIDES + 7),
        learning_rate=3e-2,
        studied=False,
    ),
    "prompt": Case(Prompt(length=3), None, False, 3 * D),
    "prompt-random": Case(Prompt(length=3, start="random"), None, False, 3 * D),
    "prompt-text": Case(
        Prompt(length=4, start="text", text="red roofs", tokens=((5,), (9,))),
        start=None,
        merges=False,
        parameters=4 * D,
        learning_rate=0.3,
    ),
    "prompt-labels": Case(
        Prompt(length=3, start="labels", labels=("a", "bc"), tokens=((5,), (9, 4))),
        start=None,
        merges=False,
        parameters=3 * D,
    ),
    "prefix": Case(Prefix(length=4), None, False, LAYERS * 2 * 4 * K, 0.3),
    "prefix-mlp": Case(
        Prefix(length=4, reparameterized=True, mlp_width=16),
        start=None,
        merges=False,
        parameters=4 * D + D * 16 + 16 + LAYERS * (16 + 1) * 2 * K,
        learning_rate=3e-2,
    ),
}
MERGED = tuple(name for name, case in CASES.items() if case.merges)

LINEARS = ("query", "key", "value", "output", "up", "down")
BIASED = tiny.config(tie_embeddings=False, biases=(*LINEARS, "gate"))
LAYER = sum(inputs * outputs for inputs, outputs in LINEAR_SIDES) + OUTPUTS + 2 * D
# what changes weights of the base, and methods together; on BIASED
BESIDE: dict[str, Case] = {
    "full": Case(Full(), 0, False, 2 * V * D + LAYERS * LAYER + D, 1e-2),
    "one-layer": Case(Partial((r"layers/1/.*", "final_norm/.*")), 0, False, LAYER + D, 1e-2),
    "biases": Case(Partial((".*/bias",)), 0, False, LAYERS * OUTPUTS),
    "l2-sp": Case(L2SP(), 0, False, 2 * V * D + LAYERS * LAYER + D, 1e-2, studied=False),
    "ewc": Case(EWC(strength=0.1), 0, False, 2 * V * D + LAYERS * LAYER + D, 1e-2, studied=False),
    "lisa": Case(
        LISA(active_layers=1, every=1),
        start=0,
        merges=False,
        parameters=2 * V * D + LAYERS * LAYER + D,
        learning_rate=1e-2,
        studied=False,
    ),
    "lora-and-prompt": Case(
        Several(of=(LoRA(rank=4), Prompt(length=3))),
        start=None,
        merges=False,
        parameters=LAYERS * 4 * SIDES + 3 * D,
        learning_rate=3e-2,
    ),
}
# several adapters of one method side by side; on SHAPE
BANKS: dict[str, Method] = {
    f"bank of {case}": Bank(of=CASES[case].method, names=("a", "b"))
    for case in ("lora-ends", "prefix-mlp")
}
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
# A relative change of all weights changes the logits of a base by 7 to 25 times as much, and by 60
# where noise on two factors, times alpha / rank, makes the scores of attention large.
GROWTH = 4
# Singular vectors turn by the rounding of a decomposition over the gap between two values, of which
# the smallest here is 1 / 250 of the largest value.
GAP = 1 / 250

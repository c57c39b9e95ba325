"""The methods that stand alone; `several` and `bank` are made of them. A new one is a line here."""

from typing import TYPE_CHECKING

from research.config.schema import by_kind, one_of
from research.methods.adalora import AdaLoRA
from research.methods.base import Method
from research.methods.bottleneck import Bottleneck
from research.methods.classifier import Classifier
from research.methods.dora import DoRA
from research.methods.ewc import EWC
from research.methods.full import Full
from research.methods.ia3 import IA3
from research.methods.l2_sp import L2SP
from research.methods.lisa import LISA
from research.methods.loha import LoHa
from research.methods.lora import LoRA
from research.methods.oft import OFT
from research.methods.partial import Partial
from research.methods.prefix import Prefix
from research.methods.prompt import Prompt
from research.methods.vera import VeRA

MEMBERS: dict[str, type[Method]] = by_kind(
    Full,
    Partial,
    LoRA,
    AdaLoRA,
    DoRA,
    IA3,
    Bottleneck,
    Prompt,
    Prefix,
    VeRA,
    LoHa,
    OFT,
    L2SP,
    EWC,
    LISA,
    Classifier,
)

# the type of a field that holds one of them, told apart by its `kind`
if TYPE_CHECKING:
    Member = Method
else:
    Member = one_of(MEMBERS.values())

"""Every tuning method by its `kind`: those of members.py, and those that are made of them."""

from research.config.schema import by_kind
from research.methods.bank import Bank
from research.methods.base import Method
from research.methods.members import MEMBERS
from research.methods.several import Several

METHODS: dict[str, type[Method]] = MEMBERS | by_kind(Several, Bank)

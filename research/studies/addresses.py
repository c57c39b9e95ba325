"""What trials and bases are known by: a digest of what they depend on, as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from research.optim.adamw import AdamW
from research.optim.base import Optimizer


def without_defaults(config: Any) -> Any:
    """A config as JSON has it, without the fields that are at their defaults.

    A field that a later version adds then changes no address. The kind of an optimizer has the key
    that it had in the first ledgers, `name`, and a default.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        content: dict[str, Any] = {}
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if field.name == "kind" and isinstance(config, Optimizer):
                content |= {"name": value} if value != AdamW.kind else {}
            elif field.name == "kind" or default is dataclasses.MISSING or value != default:
                content[field.name] = without_defaults(value)
        return content
    if isinstance(config, Mapping):
        return {key: without_defaults(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [without_defaults(value) for value in config]
    return config


def digest(content: Any) -> str:
    """Twenty hexadecimal digits of what JSON can hold."""
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]

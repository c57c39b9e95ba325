"""What trials and bases are known by: a digest of what they depend on, as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any


def without_defaults(config: Any) -> Any:
    """A config as JSON has it, without the fields that are at their defaults.

    A field that a later version adds then changes no address.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        content = {}
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if field.name == "kind" or default is dataclasses.MISSING or value != default:
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

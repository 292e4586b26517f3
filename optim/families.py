"""The model families that the engine knows, checked without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optim.errors import ModelError

FAMILIES = ("gemma2", "gpt2", "llama", "mistral", "qwen2", "qwen3")
"""Values of `model_type` in a Hugging Face config.json."""


def check_family(hf_config: Mapping[str, Any]) -> None:
    """Check that the configuration is of a known family.

    Raises:
        ModelError: it names none, or one that is not supported; lists those that are.
    """
    family = hf_config.get("model_type")
    if family is None:
        raise ModelError("the model's configuration has no model_type", hint="pass the contents of a config.json")
    if family not in FAMILIES:
        raise ModelError(f"models of type {family!r} are not supported", hint=f"supported are {', '.join(FAMILIES)}")

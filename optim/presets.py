"""Models that need no checkpoint: llama-like decoders as Hugging Face configurations."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from optim.errors import ModelError

_LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}

PRESETS = MappingProxyType(
    {
        "tiny": _LLAMA
        | {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "small": _LLAMA
        | {
            "hidden_size": 320,
            "intermediate_size": 864,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
        },
    }
)
"""Name → configuration without a vocabulary: about 0.6M (`tiny`) and 9M (`small`) parameters in the layers."""

_LEARNING_RATES = {"tiny": 4e-3, "small": 2e-3}
_PRETRAINED_LEARNING_RATE = 2e-5


def usual_learning_rate(model: str) -> float:
    """Peak AdamW learning rate of a preset, which starts from scratch, or of a folder with a trained model."""
    return _LEARNING_RATES.get(model, _PRETRAINED_LEARNING_RATE)


def preset(name: str, *, vocab_size: int, sequence_length: int) -> dict[str, Any]:
    """The configuration of a preset for a vocabulary and a longest sequence.

    Raises:
        ModelError: no such preset.
    """
    if name not in PRESETS:
        raise ModelError(f"no model preset {name!r}", hint=f"presets are {', '.join(PRESETS)}")
    return PRESETS[name] | {
        "vocab_size": vocab_size,
        "max_position_embeddings": max(2048, sequence_length),
    }

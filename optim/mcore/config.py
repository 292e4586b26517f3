"""From a Hugging Face configuration to Megatron's, for the families that are supported."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from optim import pretrained
from optim.errors import ModelError
from optim.families import check_family
from optim.layout import Layout
from optim.mcore import kernels
from optim.mcore.device import megatron_warnings_dropped

# Rotary variants whose frequencies do not change with the length of the input.
_FIXED_ROTARY = ("default", "linear", "llama3", "yarn")

# What a configuration must say for our decoder to compute the same function: attribute → allowed values.
_REQUIRED: dict[str, dict[str, tuple[object, ...]]] = {
    "llama": {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
    "mistral": {"hidden_act": ("silu",)},
    "qwen2": {"hidden_act": ("silu",)},
    "qwen3": {"hidden_act": ("silu",), "attention_bias": (False,)},
    "gemma2": {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "use_bidirectional_attention": (None, False),
    },
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
}


@dataclass
class DecoderConfig(TransformerConfig):  # type: ignore[misc]
    """Megatron's configuration and what its GPTModel does not know of these families."""

    family: str = "llama"
    vocab_size: int = 0
    """As in the checkpoint; the embedding is padded up to a multiple of the tensor-parallel size."""
    max_positions: int = 0
    tied: bool = False
    rotary_frequencies: tuple[float, ...] | None = None
    """Inverse frequencies with the family's scaling applied; None: learned absolute positions."""
    rotary_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    windows: tuple[int | None, ...] | None = None
    """Positions that each layer sees back, None for all."""
    embedding_scale: float = 1.0
    gated_activation: kernels.Activation | None = None
    """What bends the gate of a gated feed-forward layer; None: the layer has no gate, `activation_func` counts."""
    norm_plus_one: bool = False
    post_norms: bool = False
    recompute: bool = False
    """Whether layers keep their input only and run again in the backward pass."""
    takes_whole_packs: bool = False
    """Whether the attention takes all rows of a pack in one call (see `kernels.takes_whole_packs`)."""

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding, equal on every tensor-parallel rank."""
        ranks = int(self.tensor_model_parallel_size)
        return -(-self.vocab_size // ranks) * ranks


def decoder_config(hf: Any, layout: Layout, dtype: torch.dtype, *, recompute: bool = False) -> DecoderConfig:
    """Megatron's configuration of the model that the transformers configuration `hf` describes.

    Raises:
        ModelError: for a family that is not supported, naming those that are, or for an option of a
            supported family that would change what it computes.
    """
    check_family({"model_type": hf.model_type})
    family = str(hf.model_type)
    for name, allowed in _REQUIRED[family].items():
        value = getattr(hf, name, allowed[0])
        if value not in allowed:
            raise ModelError(
                f"{family} models with {name}={value!r} are not supported", hint=f"it must be {allowed[0]!r}"
            )
    specific = _gpt2(hf) if family == "gpt2" else _llama_like(hf)
    with megatron_warnings_dropped():
        config = DecoderConfig(**_common(hf, layout, dtype), **specific, recompute=recompute)
    choose_attention(config, kernels.gpu_capability())
    return config


def choose_attention(config: DecoderConfig, capability: tuple[int, int] | None) -> None:
    """Have `config` say which attention to use on a device of this CUDA capability (None: no NVIDIA GPU)."""
    config.takes_whole_packs = kernels.takes_whole_packs(
        capability, config.params_dtype, int(config.kv_channels), config.attention_softcap
    )


def _common(hf: Any, layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "family": str(hf.model_type),
        "vocab_size": int(hf.vocab_size),
        "max_positions": pretrained.max_positions(hf),
        "tied": bool(hf.tie_word_embeddings),
        "num_layers": int(hf.num_hidden_layers),
        "hidden_size": int(hf.hidden_size),
        "num_attention_heads": int(hf.num_attention_heads),
        "tensor_model_parallel_size": layout.tensor_parallel,
        "pipeline_model_parallel_size": layout.pipeline_parallel,
        "sequence_parallel": layout.sequence_parallel,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        # w and u must see the same network
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        # fused CUDA extensions that are not used here
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
        "apply_rope_fusion": False,
        # our loss function weighs rows itself: no division by tokens or micro-batches
        "calculate_per_token_loss": True,
        "batch_p2p_comm": False,
        # micro-batches are cut to their longest row; Megatron allows that with this dispatcher only
        "variable_seq_lengths": layout.pipeline_parallel > 1,
        "moe_token_dispatcher_type": "alltoall",
        "deallocate_pipeline_outputs": True,
        # the attributes that say how a weight is split are set during initialization; the values are loaded after it
        "perform_initialization": True,
        "init_method": _leave_uninitialized,
        "output_layer_init_method": _leave_uninitialized,
    }


def _gpt2(hf: Any) -> dict[str, Any]:
    return {
        "ffn_hidden_size": int(hf.n_inner or 4 * hf.hidden_size),
        "layernorm_epsilon": float(hf.layer_norm_epsilon),
        "normalization": "LayerNorm",
        "add_bias_linear": True,
        "activation_func": _gelu_tanh,
    }


def _llama_like(hf: Any) -> dict[str, Any]:
    head_width = int(getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads)
    frequencies, scale = _rotary(hf, head_width)
    settings = {
        "num_query_groups": int(hf.num_key_value_heads),
        "kv_channels": head_width,
        "ffn_hidden_size": int(hf.intermediate_size),
        "layernorm_epsilon": float(hf.rms_norm_eps),
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "gated_activation": "silu",
        "add_bias_linear": False,
        "add_qkv_bias": hf.model_type == "qwen2",
        "qk_layernorm": hf.model_type == "qwen3",
        "rotary_frequencies": frequencies,
        "rotary_scale": scale,
        "windows": _windows(hf),
    }
    return settings | (_gemma2(hf) if hf.model_type == "gemma2" else {})


def _gemma2(hf: Any) -> dict[str, Any]:
    return {
        "gated_activation": "gelu_tanh",
        "softmax_scale": float(hf.query_pre_attn_scalar) ** -0.5,
        "attention_softcap": hf.attn_logit_softcapping,
        "logit_softcap": hf.final_logit_softcapping,
        "embedding_scale": float(hf.hidden_size) ** 0.5,
        "norm_plus_one": True,
        "post_norms": True,
    }


def _windows(hf: Any) -> tuple[int | None, ...] | None:
    """Sliding window of each layer; None if no layer has one."""
    window = getattr(hf, "sliding_window", None)
    if window is None:
        return None
    kinds = getattr(hf, "layer_types", None) or ["sliding_attention"] * hf.num_hidden_layers
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


def _rotary(hf: Any, head_width: int) -> tuple[tuple[float, ...], float]:
    """Inverse frequencies, (H/2,), and the scale of cosine and sine."""
    parameters = hf.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind not in _FIXED_ROTARY or parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(
            f"rotary embeddings {dict(parameters)} are not supported",
            hint=f"rope_type must be one of {', '.join(_FIXED_ROTARY)}, over the whole head",
        )
    if kind == "default":
        exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
        return tuple((1.0 / parameters["rope_theta"] ** exponents).tolist()), 1.0
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](hf, torch.device("cpu"))
    return tuple(frequencies.tolist()), float(scale)


def _leave_uninitialized(tensor: Tensor) -> Tensor:
    return tensor


_gelu_tanh = functools.partial(functional.gelu, approximate="tanh")

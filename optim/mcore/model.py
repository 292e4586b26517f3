"""One pipeline stage of the decoder: Megatron's GPTModel with our norms, attention and loss.

The only user of GPTModel, which megatron-core ≥ 0.19 keeps but calls superseded.
Shapes: hidden states are (S, B, hidden), Megatron's order.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor
from torch.nn import Parameter, functional
from torch.utils.checkpoint import checkpoint

from optim.mcore import kernels
from optim.mcore.config import DecoderConfig
from optim.mcore.device import pick_device
from optim.mcore.head import HeadShard, Targets, token_losses
from optim.mcore.parallel import ProcessGroups
from optim.mcore.rows import PackedRows


class Decoder(GPTModel):  # type: ignore[misc]
    """The layers of one pipeline stage, with embedding on the first and head on the last.

    Called with `Targets` as labels it returns the token losses of a pack, (T,), and their weighted sum. `cut_input`
    says that nothing below this stage trains: no graph is built down to its input and zeros go upstream.
    """

    cut_input = False

    def __init__(self, config: DecoderConfig, groups: ProcessGroups) -> None:
        megatron_groups = ProcessGroupCollection.use_mpu_process_groups()
        # Both copies of a tied embedding are loaded by name and get the same summed gradient: nothing to equalise.
        megatron_groups.embd = None
        super().__init__(
            config,
            _decoder_spec(config),
            vocab_size=config.padded_vocab_size,
            max_sequence_length=config.max_positions,
            pre_process=groups.is_first_stage,
            post_process=groups.is_last_stage,
            position_embedding_type="learned_absolute" if config.rotary_frequencies is None else "none",
            share_embeddings_and_output_weights=config.tied,
            pg_collection=megatron_groups,
        )
        if groups.is_last_stage:
            self.output_layer.forward = _hand_on
        self._shard = HeadShard(
            first_label=groups.tensor_rank * config.padded_vocab_size // groups.tensor_size,
            vocab_size=config.vocab_size,
            softcap=config.logit_softcap,
            group=groups.tensor if groups.tensor_size > 1 else None,
        )
        if groups.is_first_stage and config.embedding_scale != 1.0:
            # rounded as transformers does, which keeps the scale in the dtype of the embedding
            scale = torch.tensor(config.embedding_scale, dtype=config.params_dtype).item()
            self.embedding.register_forward_hook(lambda _module, _inputs, hidden: hidden * scale)

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor | None] | None) -> None:
        """Take the hidden states from the previous stage (None on the first)."""
        hidden = input_tensor[0] if isinstance(input_tensor, list) else input_tensor
        if hidden is not None and self.cut_input:
            hidden.grad = torch.zeros_like(hidden)
            hidden = hidden.detach()
        super().set_input_tensor(hidden)

    def compute_language_model_loss(self, labels: Targets, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Token losses (T,) and their weighted sum of `logits`, which are the hidden states still (see `head`)."""
        hidden = logits
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden)
        elif self.config.tensor_model_parallel_size > 1:
            hidden = copy_to_tensor_model_parallel_region(hidden)
        weight = self.shared_embedding_or_output_weight() if self.config.tied else self.output_layer.weight
        return token_losses(hidden[:, 0], weight, labels, self._shard)

    def named_global_parameters(self) -> dict[str, Parameter]:
        """Parameters of this stage by Megatron name, layers counted over the whole model."""
        first = self.first_layer
        named = {}
        for name, parameter in self.named_parameters():
            layer = layer_of(name)
            if layer is not None:
                name = name.replace(f"decoder.layers.{layer}.", f"decoder.layers.{layer + first}.", 1)
            named[name] = parameter
        return named

    @property
    def first_layer(self) -> int:
        """Global index of this stage's lowest layer."""
        return int(self.decoder.layers[0].layer_number) - 1


def _hand_on(hidden: Tensor, **_: object) -> tuple[Tensor, None]:
    """What the output layer does: its product and the loss come by chunks, in `compute_language_model_loss`."""
    return hidden, None


def layer_of(name: str) -> int | None:
    """Layer index in a Megatron parameter name, None for embedding, final norm and head."""
    prefix = "decoder.layers."
    return int(name[len(prefix) :].split(".", 1)[0]) if name.startswith(prefix) else None


class Layer(TransformerLayer):  # type: ignore[misc]
    """A transformer layer that keeps no graph when neither it nor anything below it trains.

    Recomputation is torch's: Megatron's own checkpoint gives no gradient to a layer whose input needs none.
    """

    needs_graph = True

    def __init__(self, config: DecoderConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if config.gated_activation is not None:
            self.mlp.forward = functools.partial(_gated_feed_forward, self.mlp, config.gated_activation)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Megatron's forward pass."""
        if self.needs_graph:
            if self.config.recompute and torch.is_grad_enabled():
                return checkpoint(
                    self._forward_again, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
                )  # no dropout, so no random state
            return super().forward(*args, **kwargs)
        with torch.no_grad():
            return super().forward(*args, **kwargs)

    def _forward_again(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().forward(*args, **kwargs)
        finally:
            # Torch leaves a recomputed layer by an exception as soon as it has what it needs. Megatron ≥ 0.19 holds the
            # hidden states here until the layer's last line, and with them all that was recomputed.
            self.mlp_norm_manager = None


def _gated_feed_forward(mlp: MLP, activation: kernels.Activation, hidden: Tensor, **_: object) -> Any:
    """Megatron's, but for what the activation keeps: its input instead of four tensors of half that size."""
    gate_up, _ = mlp.linear_fc1(hidden)
    return mlp.linear_fc2(kernels.gated_activation(gate_up, activation))


class Norm(torch.nn.Module):
    """RMSNorm or LayerNorm, as the configuration says."""

    def __init__(self, config: DecoderConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.plus_one = config.norm_plus_one
        factory: dict[str, Any] = {"dtype": config.params_dtype, "device": pick_device()}
        self.weight = Parameter(torch.empty(hidden_size, **factory))
        has_bias = config.normalization == "LayerNorm"
        self.bias = Parameter(torch.empty(hidden_size, **factory)) if has_bias else None
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        if self.bias is not None:
            return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        if self.plus_one:
            normed = functional.rms_norm(x.float(), x.shape[-1:], None, self.eps)
            return (normed * (1.0 + self.weight.float())).to(x.dtype)
        return functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class CoreAttention(MegatronModule):  # type: ignore[misc]
    """Rotary embedding and causal attention between the query-key-value and the output projection."""

    def __init__(
        self, config: DecoderConfig, layer_number: int, *_: object, softmax_scale: float | None = None, **__: object
    ) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale or config.softmax_scale or config.kv_channels**-0.5
        self.window = config.windows[layer_number - 1] if config.windows else None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *_: object, packed_seq_params: PackedRows, **__: object
    ) -> Tensor:
        """(T, N, H) and twice (T, K, H) of a pack → (T, N·H); every row sees its own earlier positions."""
        if self.config.takes_whole_packs:
            return self._attend_at_once(packed_seq_params, query, key, value)
        rows = packed_seq_params
        if rows.padding is not None:
            query, key, value = (rows.padding.spread(x) for x in (query, key, value))
        sizes = [strip.num_tokens for strip in rows.strips]
        parts = zip(rows.strips, *(torch.split(x, sizes) for x in (query, key, value)), strict=True)
        outs = [self._attend(strip.length, q, k, v) for strip, q, k, v in parts]
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        return out if rows.padding is None else rows.padding.collect(out)

    def _attend(self, length: int, *parts: Tensor) -> Tensor:
        """Attention within rows of equal `length` that follow each other."""
        q_SBNH, k_SBKH, v_SBKH = (x.view(-1, length, *x.shape[1:]).transpose(0, 1) for x in parts)
        out_SBD = kernels.causal_attention(
            q_SBNH,
            k_SBKH,
            v_SBKH,
            table=self._table(length, q_SBNH),
            scale=self.scale,
            window=self.window,
            softcap=self.config.attention_softcap,
        )
        return out_SBD.transpose(0, 1).flatten(0, 1)

    def _attend_at_once(self, rows: PackedRows, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The same of all rows in one call."""
        table = self._table(rows.longest, query)
        return kernels.packed_attention(
            query,
            key,
            value,
            starts_B=rows.starts_B,
            longest=rows.longest,
            table=None if table is None else (table[0][rows.positions_T], table[1][rows.positions_T]),
            scale=self.scale,
            window=self.window,
        )

    def _table(self, length: int, like: Tensor) -> kernels.RotaryTable | None:
        """Angles of the first `length` positions; None where positions are learned."""
        config = self.config
        if config.rotary_frequencies is None:
            return None
        return kernels.rotary_table(length, config.rotary_frequencies, config.rotary_scale, like.dtype, like.device)


class PostNormLinear(RowParallelLinear):  # type: ignore[misc]
    """A row-parallel projection whose summed output goes through a norm: Gemma 2's norms after attention and MLP."""

    def __init__(self, *args: Any, config: DecoderConfig, **kwargs: Any) -> None:
        super().__init__(*args, config=config, **kwargs)
        self.post_norm = Norm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """Output and its bias, which the caller adds."""
        out, bias = super().forward(input_)
        return self.post_norm(out), bias


def _decoder_spec(config: DecoderConfig) -> TransformerBlockSubmodules:
    projection = PostNormLinear if config.post_norms else RowParallelLinear
    head_norm = Norm if config.qk_layernorm else IdentityOp
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=CoreAttention,
            linear_proj=projection,
            q_layernorm=head_norm,
            k_layernorm=head_norm,
        ),
    )
    layer = ModuleSpec(
        module=Layer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=Norm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=Norm,
            mlp=_feed_forward_spec(projection),
            mlp_bda=get_bias_dropout_add,
        ),
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=Norm)


def _feed_forward_spec(projection: type[RowParallelLinear]) -> Any:
    submodules = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=projection)
    if hasattr(MLP, "as_mlp_submodule"):  # megatron-core ≥ 0.19
        return functools.partial(MLP.as_mlp_submodule, submodules=submodules)
    return ModuleSpec(module=MLP, submodules=submodules)

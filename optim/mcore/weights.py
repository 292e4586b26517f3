"""Hugging Face names and layouts ↔ Megatron's, for whole models that are split over tensor and pipeline ranks.

Megatron keeps query, key and value of one key-value group together, gate and up projection in one matrix, and Linear
weights as (out, in). A `Rule` says how one full Megatron tensor is made of full Hugging Face tensors and taken apart
again; both directions only move numbers, so a round trip is exact. The same rules serve the optimizer's moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter, functional

from optim.mcore.config import DecoderConfig
from optim.mcore.device import pick_device
from optim.mcore.model import Decoder, layer_of
from optim.mcore.parallel import EMBEDDING, HEAD, ProcessGroups, is_split

ReadTensor = Callable[[str, tuple[int, ...]], Tensor]
"""(Hugging Face name, shape) → full tensor."""


@dataclass(frozen=True)
class Rule:
    """One Megatron tensor in terms of Hugging Face tensors, `{}` standing for the layer in their names."""

    names: tuple[str, ...]
    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor], list[Tensor]]


class WeightMap:
    """The weights of one pipeline stage by Hugging Face name."""

    def __init__(self, config: DecoderConfig, groups: ProcessGroups) -> None:
        self._config = config
        self._groups = groups
        self._rules = _gpt2_rules(config) if config.family == "gpt2" else _llama_rules(config)

    @torch.no_grad()
    def load(self, decoder: Decoder, read: ReadTensor) -> None:
        """Fill this stage with the tensors that `read` gives, one at a time."""
        for name, parameter in decoder.named_global_parameters().items():
            self.fill(name, parameter, parameter, read)

    @torch.no_grad()
    def fill(self, name: str, parameter: Parameter, out: Tensor, read: ReadTensor) -> None:
        """Copy this rank's part of the tensors behind `name` into `out`, which is split like `parameter`."""
        names, rule = self._rule(name)
        shapes = [tuple(part.shape) for part in rule.split(self._empty_full(name, parameter))]
        full = rule.join([read(hf_name, shape) for hf_name, shape in zip(names, shapes, strict=True)])
        if self._is_padded(name):
            full = functional.pad(full, (0, 0, 0, self._config.padded_vocab_size - self._config.vocab_size))
        out.copy_(self._shard(name, parameter, full))

    @torch.no_grad()
    def full_tensors(self, decoder: Decoder, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full tensor) of `tensors`, which are named and split like this stage's parameters.

        The second copy of a tied embedding is left out.

        Collective: every rank of `groups.tensor`; all yield.
        """
        for name, parameter in decoder.named_global_parameters().items():
            if name not in tensors or (name == HEAD and self._config.tied):
                continue
            full = self._unshard(name, parameter, tensors[name].detach())
            names, rule = self._rule(name)
            if self._is_padded(name):
                full = full[: self._config.vocab_size]
            for hf_name, tensor in zip(names, rule.split(full), strict=True):
                yield hf_name, tensor.contiguous()

    def names_of(self, name: str) -> list[str]:
        """The Hugging Face tensors behind the Megatron parameter `name`."""
        return self._rule(name)[0]

    def num_elements(self, decoder: Decoder) -> int:
        """Elements of this stage's full tensors, without padding and the second copy of a tied embedding."""
        return sum(
            self._empty_full(name, parameter).numel()
            for name, parameter in decoder.named_global_parameters().items()
            if not (name == HEAD and self._config.tied and not self._groups.is_first_stage)
        )

    def _rule(self, name: str) -> tuple[list[str], Rule]:
        layer = layer_of(name)
        if layer is None:
            rule = self._rules[EMBEDDING if name == HEAD and self._config.tied else name]
            return list(rule.names), rule
        rule = self._rules[name.replace(f".{layer}.", ".{}.", 1)]
        return [hf_name.format(layer) for hf_name in rule.names], rule

    def _is_padded(self, name: str) -> bool:
        return name in (EMBEDDING, HEAD)

    def _empty_full(self, name: str, parameter: Parameter) -> Tensor:
        """A tensor without storage of the full shape, without the padding of the vocabulary."""
        shape = list(parameter.shape)
        if is_split(parameter):
            shape[_split_dim(parameter)] *= self._groups.tensor_size
        if self._is_padded(name):
            shape[0] = self._config.vocab_size
        return torch.empty(shape, device="meta")

    def _shard(self, name: str, parameter: Parameter, full: Tensor) -> Tensor:
        """This rank's part of `full`."""
        rank, size = self._groups.tensor_rank, self._groups.tensor_size
        if not is_split(parameter) or size == 1:
            return full
        if self._is_gated(name):  # every rank holds its gate rows above its up rows
            return torch.cat([half.chunk(size)[rank] for half in full.chunk(2)])
        return full.chunk(size, dim=_split_dim(parameter))[rank]

    def _unshard(self, name: str, parameter: Parameter, part: Tensor) -> Tensor:
        """The full tensor of which every rank holds a `part`."""
        if not is_split(parameter) or self._groups.tensor_size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self._groups.tensor_size)]
        dist.all_gather(parts, part.contiguous(), group=self._groups.tensor)
        if self._is_gated(name):
            gates, ups = zip(*(part.chunk(2) for part in parts), strict=True)
            return torch.cat(gates + ups)
        return torch.cat(parts, dim=_split_dim(parameter))

    def _is_gated(self, name: str) -> bool:
        return bool(self._config.gated_linear_unit) and ".linear_fc1." in name


def over_stages(local: Iterator[tuple[str, Tensor]], groups: ProcessGroups) -> Iterator[tuple[str, Tensor]]:
    """What every stage yields, on every stage, lowest stage first, on the CPU, one tensor in memory at a time.

    Collective: every rank of `groups.pipeline`; each must exhaust it.
    """
    for stage in range(groups.num_stages):
        if groups.num_stages == 1:
            yield from ((name, tensor.cpu()) for name, tensor in local)
        elif stage == groups.stage:
            yield from _send(local, groups)
        else:
            yield from _receive(stage, groups)


def _send(local: Iterator[tuple[str, Tensor]], groups: ProcessGroups) -> Iterator[tuple[str, Tensor]]:
    source = dist.get_global_rank(groups.pipeline, groups.stage)
    for name, tensor in local:
        dist.broadcast_object_list([(name, tensor.shape, tensor.dtype)], src=source, group=groups.pipeline)
        dist.broadcast(tensor, src=source, group=groups.pipeline)
        yield name, tensor.cpu()
    dist.broadcast_object_list([None], src=source, group=groups.pipeline)


def _receive(stage: int, groups: ProcessGroups) -> Iterator[tuple[str, Tensor]]:
    source = dist.get_global_rank(groups.pipeline, stage)
    device = pick_device()
    while True:
        header: list[tuple[str, torch.Size, torch.dtype] | None] = [None]
        dist.broadcast_object_list(header, src=source, group=groups.pipeline)
        if header[0] is None:
            return
        name, shape, dtype = header[0]
        tensor = torch.empty(shape, dtype=dtype, device=device)
        dist.broadcast(tensor, src=source, group=groups.pipeline)
        yield name, tensor.cpu()


def _split_dim(parameter: Parameter) -> int:
    return int(parameter.partition_dim)  # type: ignore[attr-defined]


def _same(name: str) -> Rule:
    return Rule((name,), lambda parts: parts[0], lambda full: [full])


def _transposed(name: str) -> Rule:
    return Rule((name,), lambda parts: parts[0].t(), lambda full: [full.t()])


def _gate_and_up(gate: str, up: str) -> Rule:
    return Rule((gate, up), lambda parts: torch.cat(list(parts)), lambda full: list(full.chunk(2)))


def _join_qkv(config: DecoderConfig, parts: Sequence[Tensor]) -> Tensor:
    """Query, key and value rows (heads · width, …) → for every key-value group its query rows, key and value."""
    grouped = [part.reshape(config.num_query_groups, -1, *part.shape[1:]) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def _split_qkv(config: DecoderConfig, full: Tensor) -> list[Tensor]:
    """The inverse of `_join_qkv`."""
    groups, width = config.num_query_groups, config.kv_channels
    queries = config.num_attention_heads // groups * width
    grouped = full.reshape(groups, queries + 2 * width, *full.shape[1:])
    return [part.flatten(0, 1) for part in torch.split(grouped, [queries, width, width], dim=1)]


def _llama_rules(config: DecoderConfig) -> dict[str, Rule]:
    """Llama and its relatives: Mistral, Qwen 2 and 3, Gemma 2."""
    ours, theirs = "decoder.layers.{}.", "model.layers.{}."
    pre_mlp_norm = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
    same = {
        "input_layernorm": "input_layernorm",
        "pre_mlp_layernorm": pre_mlp_norm,
        "self_attention.linear_proj": "self_attn.o_proj",
        "self_attention.linear_proj.post_norm": "post_attention_layernorm",
        "self_attention.q_layernorm": "self_attn.q_norm",
        "self_attention.k_layernorm": "self_attn.k_norm",
        "mlp.linear_fc2": "mlp.down_proj",
        "mlp.linear_fc2.post_norm": "post_feedforward_layernorm",
    }
    rules = {f"{ours}{mine}.weight": _same(f"{theirs}{other}.weight") for mine, other in same.items()}
    for kind in ("weight", "bias"):
        rules[f"{ours}self_attention.linear_qkv.{kind}"] = Rule(
            tuple(f"{theirs}self_attn.{letter}_proj.{kind}" for letter in "qkv"),
            lambda parts: _join_qkv(config, parts),
            lambda full: _split_qkv(config, full),
        )
    rules[f"{ours}mlp.linear_fc1.weight"] = _gate_and_up(f"{theirs}mlp.gate_proj.weight", f"{theirs}mlp.up_proj.weight")
    rules[EMBEDDING] = _same("model.embed_tokens.weight")
    rules["decoder.final_layernorm.weight"] = _same("model.norm.weight")
    rules[HEAD] = _same("lm_head.weight")
    return rules


def _gpt2_rules(config: DecoderConfig) -> dict[str, Rule]:
    """GPT-2, whose Conv1D weights are (in, out) and whose query, key and value are one tensor."""
    ours, theirs = "decoder.layers.{}.", "transformer.h.{}."
    rules = {
        EMBEDDING: _same("transformer.wte.weight"),
        "embedding.position_embeddings.weight": _same("transformer.wpe.weight"),
    }
    linears = {
        "self_attention.linear_proj": "attn.c_proj",
        "mlp.linear_fc1": "mlp.c_fc",
        "mlp.linear_fc2": "mlp.c_proj",
    }
    for mine, other in linears.items():
        rules[f"{ours}{mine}.weight"] = _transposed(f"{theirs}{other}.weight")
        rules[f"{ours}{mine}.bias"] = _same(f"{theirs}{other}.bias")
    for kind in ("weight", "bias"):
        rules[f"{ours}input_layernorm.{kind}"] = _same(f"{theirs}ln_1.{kind}")
        rules[f"{ours}pre_mlp_layernorm.{kind}"] = _same(f"{theirs}ln_2.{kind}")
        rules[f"decoder.final_layernorm.{kind}"] = _same(f"transformer.ln_f.{kind}")
    qkv = f"{ours}self_attention.linear_qkv."
    rules[f"{qkv}weight"] = Rule(
        (f"{theirs}attn.c_attn.weight",),
        lambda parts: _join_qkv(config, parts[0].t().chunk(3)),
        lambda full: [torch.cat(_split_qkv(config, full)).t()],
    )
    rules[f"{qkv}bias"] = Rule(
        (f"{theirs}attn.c_attn.bias",),
        lambda parts: _join_qkv(config, parts[0].chunk(3)),
        lambda full: [torch.cat(_split_qkv(config, full))],
    )
    return rules

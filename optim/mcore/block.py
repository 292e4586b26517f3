"""The active block: what trains, and how far down the backward pass goes."""

from __future__ import annotations

from torch.nn import Parameter

from optim.blocks import Block
from optim.mcore.model import Decoder, layer_of


def set_active(decoder: Decoder, block: Block) -> dict[str, Parameter]:
    """Let exactly `block` train in this stage, and drop the gradients of everything else.

    Layers below the lowest active one keep no graph, and a stage that has nothing trainable below it sends no
    gradient upstream.

    Returns:
        The parameters of this stage that train, by Megatron name.
    """
    active = {}
    for name, parameter in decoder.named_global_parameters().items():
        layer = layer_of(name)
        trains = block.edges if layer is None else layer in block.layers
        # A frozen linear layer's backward returns no bias gradient, so weight and bias always go together.
        parameter.requires_grad_(trains)
        if trains:
            active[name] = parameter
        else:
            parameter.grad = None
    _cut_graph(decoder, lowest=_lowest_active(block))
    return active


def _lowest_active(block: Block) -> int:
    """Lowest layer that must carry a gradient; the embedding counts as −1."""
    return -1 if block.edges else min(block.layers)


def _cut_graph(decoder: Decoder, *, lowest: int) -> None:
    first = decoder.first_layer
    for index, layer in enumerate(decoder.decoder.layers):
        layer.needs_graph = first + index >= lowest
    decoder.cut_input = first > 0 and lowest >= first

"""All formats by name; each is a module of its own that cites the documentation or source of its reader."""

from __future__ import annotations

from collections.abc import Mapping

from curator.export import (
    axolotl,
    data_juicer,
    datasets,
    energon,
    levanter,
    llama_factory,
    megatron,
    nanotron,
    olmo_core,
    streaming,
    torch,
    torchtitan,
    trl,
)
from curator.export.format import Format

FORMATS: Mapping[str, Format] = {
    "megatron": megatron.BLEND,
    "megatron-splits": megatron.SPLITS,
    "energon": energon.FORMAT,
    "nanotron": nanotron.FORMAT,
    "olmo-core": olmo_core.FORMAT,
    "torchtitan": torchtitan.FORMAT,
    "levanter": levanter.FORMAT,
    "streaming": streaming.FORMAT,
    "torch": torch.FORMAT,
    "datasets": datasets.FORMAT,
    "trl": trl.FORMAT,
    "axolotl": axolotl.FORMAT,
    "llama-factory": llama_factory.FORMAT,
    "data-juicer": data_juicer.FORMAT,
}

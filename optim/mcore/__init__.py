"""Backend on Megatron-Core: tensor × pipeline × data parallelism. The only package that imports megatron."""

from __future__ import annotations

from optim.mcore.device import import_megatron

# Before any module of this package says `from megatron.core import …`, so that the first import is the quiet one.
import_megatron()

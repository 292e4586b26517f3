"""Weights as a trainer's own settings: one file, in the unit that its reader means."""

from curator.export.export import Export, export
from curator.export.formats import FORMATS

__all__ = ["FORMATS", "Export", "export"]

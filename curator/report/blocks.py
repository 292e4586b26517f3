"""What a page is made of. Strings are shown as they are, whatever stands in them; markup is put in as markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Heading:
    """Of a part of a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with what is to be known of it."""

    kind: ClassVar[str] = "figure"
    drawing: Markup
    caption: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells, the first of which names the row; `num_words` columns are of words, the others of numbers."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_words: int = 1


@dataclass(frozen=True)
class Side:
    """Tables that stand side by side where there is room."""

    kind: ClassVar[str] = "side"
    tables: Sequence[Table]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Small drawings, as many beside each other as there is room for."""

    kind: ClassVar[str] = "gallery"
    drawings: Sequence[Markup]
    caption: str


Block = Paragraph | Heading | Figure | Table | Side | Gallery


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page; `anchor` is its address within it."""

    anchor: str
    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure that is read first, with its name and what it is to be compared with."""

    name: str
    figure: str
    beside: str = ""

"""What notebooks show of an object: a small table of HTML, without scripts and requests, every name in it inert."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_MOST_ROWS = 20
_LONGEST = 200
"""Characters of a cell that are shown."""


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], notes: Sequence[str] = ()) -> str:
    """A title, the first rows of a table, and sentences below it."""
    shown = [_row("td", row) for row in rows[:_MOST_ROWS]]
    more = [f"{len(rows) - _MOST_ROWS:,} more rows are not shown."] if len(rows) > _MOST_ROWS else []
    said = "".join(f"<p>{_inert(note)}</p>" for note in (*more, *notes) if note)
    head = f"<thead>{_row('th', columns)}</thead>" if columns else ""
    return f"<div><p><b>{_inert(title)}</b></p><table>{head}<tbody>{''.join(shown)}</tbody></table>{said}</div>"


def _row(tag: str, cells: Sequence[object]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_inert(cell)}</{tag}>' for cell in cells)}</tr>"


def _inert(value: object) -> str:
    from curator.console import printable

    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return escape(printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"))

"""The guide to all settings, made of what the settings say of themselves.

Run: python tests/settings_page.py, to write examples/guides/settings.md anew; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from curator.config import Config

PAGE = Path(__file__).parents[1] / "examples" / "guides" / "settings.md"
HEAD = """\
# Settings

All of them, with their defaults. They come from, later wins: the defaults; a TOML or YAML file (`--config FILE`,
or `./curator.toml` where no LAKE_URL is given or the file's own is); variables such as
`CURATOR__LEARN__STEPS=500`, with two underscores between the levels; the options of a command, or the arguments in
Python. An unknown key is an error that names the nearest known one. A relative `lake.url` or `target.url` counts
from where the command runs. `curator init LAKE_URL` writes a file with the settings that one changes first. This
page is made by `python tests/settings_page.py`.
"""


def page() -> str:
    """The whole guide."""
    parts = [HEAD]
    for name, section in Config.model_fields.items():
        kind = section.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        doc = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        parts.append(f"## [{name}]\n\n{doc}\n\n| | default | |\n|---|---|---|\n" + "\n".join(rows(kind, name)) + "\n")
    return "\n".join(parts)


def rows(kind: type[BaseModel], path: str) -> Iterator[str]:
    """A row of the table for each setting, those of sections within it too."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from rows(inner, f"{path}.{name}")
        else:
            yield f"| `{path}.{name}` | {default(field)} | {field.description or ''} |"


def default(field: FieldInfo) -> str:
    """As TOML has it; nothing where there is none."""
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return ""
    shown = list(value) if isinstance(value, tuple) else value
    return f"`{json.dumps(shown)}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

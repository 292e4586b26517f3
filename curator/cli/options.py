"""What several commands take and do: arguments and options, settings, opening the lake."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from curator.config import Config
    from curator.lake import Lake

LakeArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="LAKE_URL", help="Folder, file or glob of Parquet files; any fsspec URL.", show_default=False
    ),
]
TargetTextOption = Annotated[
    str | None,
    typer.Option("--target-text", help="The target's text column; default: the lake's.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", help="TOML or YAML settings; default: ./curator.toml, if LAKE_URL is left out or its own."
    ),
]
TextOption = Annotated[str | None, typer.Option("--text", help="Column with the text.", show_default=False)]
DomainOption = Annotated[
    str | None, typer.Option("--domain", help="Column or hive partition with the domain.", show_default=False)
]
KeyOption = Annotated[str | None, typer.Option("--key", help="Column with a unique, stable key.", show_default=False)]
DestinationOption = Annotated[
    str | None,
    typer.Option("--destination", help="Where versions go; default: _curator in the lake.", show_default=False),
]
SkipOption = Annotated[
    bool | None,
    typer.Option("--skip-bad-rows", help="Leave out rows without text or domain.", show_default=False),
]
ModeOption = Annotated[
    str | None,
    typer.Option(
        "--mode",
        help="What the catalog keeps: index (ids and lengths), table (all columns, too), or view (nothing).",
        show_default=False,
    ),
]
MinRowsOption = Annotated[
    int | None, typer.Option("--min-domain-rows", help="Least usable rows of a domain.", show_default=False)
]
VersionOption = Annotated[
    int | None, typer.Option("--version", help="Of this version, by its number.", show_default=False)
]
AsOfOption = Annotated[
    str | None,
    typer.Option(
        "--as-of", help="Of the newest version at an ISO date (its first moment) or time, in UTC.", show_default=False
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]

# A command chooses the type: `plan` has a default for each, the others leave it to the settings.
TENSOR_PARALLEL = typer.Option("--tensor-parallel", help="Workers that share each layer.")
PIPELINE_PARALLEL = typer.Option("--pipeline-parallel", help="Workers that share the layers.")
DATA_PARALLEL = typer.Option("--data-parallel", help="Workers that share the batch.")
BLOCK_SIZE = typer.Option("--block-size", help="Layers that train at a time; 0: all.")
ModelOption = Annotated[
    str | None, typer.Option("--model", help="tiny, small, or a Hugging Face model folder.", show_default=False)
]
GranularityOption = Annotated[
    str | None,
    typer.Option(
        "--granularity",
        help="domain (the default); cluster: domains are split by content; sample: rows get weights, too.",
        show_default=False,
    ),
]


def read_settings(lake_url: str | None, path: Path | None) -> Config:
    """The settings of the file that was named, else of ./curator.toml, if no lake was named or it is that file's."""
    from curator.config import DEFAULT_FILE, load_config, override
    from curator.errors import ConfigError

    if path is None and lake_url is None:
        if not Path(DEFAULT_FILE).exists():
            raise ConfigError(
                f"no LAKE_URL was given and there is no {DEFAULT_FILE} here", hint="`curator init LAKE_URL` writes one"
            )
        path = Path(DEFAULT_FILE)
    elif path is None and lake_url and _is_of(Path(DEFAULT_FILE), lake_url):
        path = Path(DEFAULT_FILE)
    config = load_config(path)
    return override(config, lake={"url": lake_url} if lake_url else None)


def _is_of(path: Path, lake_url: str) -> bool:
    """Whether a settings file names this lake; what is wrong with a file that nobody named is not looked at."""
    import tomllib

    try:
        url = tomllib.loads(path.read_text(encoding="utf-8"))["lake"]["url"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return isinstance(url, str) and _normal(url) == _normal(lake_url)


def _normal(url: str) -> str:
    return url.rstrip("/") if "://" in url else str(Path(url).absolute())


def lake_and(what: str, first: str | None, second: str | None, config: Path | None) -> tuple[str | None, str]:
    """(LAKE_URL, what is asked of it) of two arguments; of one alone, None for the lake of the settings file."""
    from curator.config import DEFAULT_FILE
    from curator.errors import UsageError

    if first is None:
        raise UsageError(f"no {what} was given", hint=f"pass LAKE_URL and {what}")
    if second is not None:
        return first, second
    if config is None and not Path(DEFAULT_FILE).exists():
        raise UsageError(
            f"{first!r} was given alone",
            hint=f"name the lake, too: LAKE_URL {what}, or its settings file by --config, or go to the folder of its "
            f"{DEFAULT_FILE}",
        )
    return None, first


def open_given(settings: Config, **given: Any) -> Lake:
    """The lake of the settings, but for what was given."""
    from curator.errors import ConfigError
    from curator.lake import open_lake

    if not settings.lake.url:
        raise ConfigError("no lake was named", hint="pass LAKE_URL or set lake.url")
    return open_lake(settings.lake.url, config=settings.lake, **given)


def given_layout(tensor: int | None, pipeline: int | None, data: int | None) -> dict[str, int | None]:
    """Settings of the layout, None where nothing was said."""
    return {"tensor_parallel": tensor, "pipeline_parallel": pipeline, "data_parallel": data}


def print_next(*commands: str) -> None:
    """Say which commands come next, ready to be copied."""
    from curator import console

    console.out().print("\nNext:")
    for command in commands:
        print(f"  {command}")  # noqa: T201

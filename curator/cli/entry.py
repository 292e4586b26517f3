"""What `curator` starts: the commands, and what becomes of an error."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from curator.cli import exports, lakes, learning, refreshing, scoring, selections, setup, versions


class _Commands(TyperGroup):
    """Typer answers Ctrl-C with status 130 and no word; ours is a sentence and status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            from curator.errors import STOPPED, InterruptedRunError

            raise InterruptedRunError(STOPPED) from error


app = typer.Typer(
    name="curator",
    cls=_Commands,
    help="Learn what every domain and row of a data lake is worth for your target, and write it back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)


def _print_version(value: bool) -> None:
    if value:
        from curator import __version__

        print(__version__)  # noqa: T201
        raise typer.Exit


@app.callback()
def _root(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere on the line.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del debug, version  # main() takes the first off the line before it is parsed; the other has its callback


for _command in (
    setup.demo,
    setup.init,
    lakes.ingest,
    learning.learn,
    learning.compare,
    scoring.score,
    versions.publish,
    refreshing.refresh,
    refreshing.status,
    lakes.sql,
    versions.history,
    versions.rollback,
    versions.gc,
    versions.verify,
    versions.views,
    selections.materialize,
    exports.export,
    exports.report,
    learning.plan,
    setup.doctor,
):
    app.command()(_command)


def main() -> None:
    """Entry point: run a command, and turn an error into one sentence and its exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    signal.signal(signal.SIGTERM, _interrupt)
    if not debug:  # what they log of a failure comes in one sentence
        for name in ("aiohttp", "asyncio", "azure", "fsspec", "gcsfs", "s3fs"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        # Named so also where `python -m curator` was typed: completion is of a word, and that one is installed.
        sys.exit(app(arguments or ["--help"], standalone_mode=False, prog_name="curator"))
    except BrokenPipeError:  # the reader of our output is gone, as in `curator history LAKE | head -1`
        sys.stderr.close()
        os._exit(1)
    except Exception as error:  # the last place where a traceback could be kept from the user
        if debug:
            traceback.print_exc()
        told = _told(error, arguments)
        _report(told, as_json="--json" in arguments)
        sys.exit(told.exit_code)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


_EXTRA_ARGUMENTS = {"export": "name the format with --format and the file with --out, "}
"""What is likely meant by an argument too many, by command."""


class _Failure(NamedTuple):
    """What is told of an error: what is wrong, and what to do where that is known."""

    code: str
    message: str
    hint: str | None
    exit_code: int


def _told(error: Exception, arguments: list[str]) -> _Failure:
    from curator.errors import CuratorError

    if isinstance(error, CuratorError):
        return _Failure(error.code, error.message, error.hint, error.exit_code)
    if hasattr(error, "format_message"):  # an option or argument that typer refuses
        known = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
        command = next((argument for argument in arguments if argument in known), "")
        message = error.format_message().replace("Value error, ", "").rstrip(".")
        meant = _EXTRA_ARGUMENTS.get(command, "") if "extra argument" in message else ""
        return _Failure("usage", message, f"{meant}see `{f'curator {command}'.rstrip()} --help`", 2)
    hint = "this is a defect of ours, --debug shows where"
    return _Failure("internal", f"{type(error).__name__}: {error}", hint, 1)


def _report(told: _Failure, *, as_json: bool) -> None:
    message = " ".join(told.message.split())
    hint = told.hint and " ".join(told.hint.split())
    print(f"curator: {message}; {hint}" if hint else f"curator: {message}", file=sys.stderr)  # noqa: T201
    if as_json:
        from curator import console

        console.print_json({"status": "error", "error": {"code": told.code, "message": message, "hint": hint}})

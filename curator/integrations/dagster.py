"""A lake's published weights as a Dagster asset, which materializes by `Lake.refresh` in the same process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from curator.config import Config, load_config
from curator.errors import ConfigError, MissingExtraError
from curator.integrations.pipes import metadata
from curator.lake import open_lake
from curator.progress import Progress
from curator.refresh import Refresh
from curator.rules import GATES, Gate


def curator_assets(config: str | Path, *, name: str = "weights") -> Any:
    """An `AssetsDefinition` with the asset `name`, a blocking check for each gate of a refresh, and metadata.

    The asset's data version is the lake's newest version, so that what stands on it is stale only if there is a new
    one. A gate that does not pass fails its check, and what comes after is not run.

    Args:
        config: settings with the lake, the target and how to learn; read when Dagster loads the asset and again when
            it is materialized, so that changes of thresholds need no reload.
        name: of the asset.

    Raises:
        MissingExtraError: dagster is not installed.
        ConfigError: the settings cannot be read, or name no lake.
    """
    dagster = _dagster()
    settings = _settings(config)

    @dagster.multi_asset(  # type: ignore[untyped-decorator, unused-ignore]  # with dagster installed it has types
        name=f"refresh_{name}",
        specs=[dagster.AssetSpec(name, description=f"Row weights of {settings.lake.url}", skippable=True)],
        check_specs=[dagster.AssetCheckSpec(gate, asset=name, blocking=True) for gate in GATES],
    )
    def refresh():  # type: ignore[no-untyped-def]  # Dagster would take an annotation for the type of an output
        yield from _results(dagster, name, _refresh(_settings(config), dagster.get_dagster_logger().info))

    return refresh


def _settings(config: str | Path) -> Config:
    settings = load_config(config)
    if not settings.lake.url:
        raise ConfigError(f"{config} names no lake", hint="set lake.url")
    return settings


def _refresh(settings: Config, say: Callable[[str], Any]) -> Refresh:
    stages: set[str] = set()

    def tell(state: Progress) -> None:
        if state.stage not in stages:  # one line a stage: Dagster keeps every event
            stages.add(state.stage)
            say(f"{state.stage} {state.detail}")

    with open_lake(settings.lake.url, config=settings.lake) as lake:
        done = lake.refresh(settings.target, learn=settings.learn, config=settings.refresh, on_progress=tell)
    say(f"{done.outcome}: {'; '.join(reason.said for reason in done.reasons) or 'no reason to learn'}")
    return done


def _results(dagster: Any, name: str, done: Refresh) -> Iterator[Any]:
    """The asset, unless a gate kept it from being renewed, and its checks; those that were not needed pass."""
    if done.outcome != "refused":
        yield dagster.MaterializeResult(
            asset_key=name, metadata=metadata(done), data_version=dagster.DataVersion(str(done.version))
        )
    found: dict[str, Gate] = {gate.name: gate for gate in done.gates}
    for gate in GATES:
        result = found.get(gate)
        yield dagster.AssetCheckResult(
            check_name=gate,
            asset_key=name,
            passed=result is None or result.passed,
            metadata={"said": result.said if result else "not needed"},
        )


def _dagster() -> Any:
    try:
        import dagster
    except ModuleNotFoundError as error:
        raise MissingExtraError("the asset needs the package 'dagster': pip install 'lake-curator[dagster]'") from error
    return dagster

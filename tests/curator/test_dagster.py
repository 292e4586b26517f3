"""The lake as a Dagster asset, materialized in this process by Dagster itself."""

import json
import runpy
from datetime import UTC, datetime

import pytest
from lake_cases import FAST, REPOSITORY, sentences, write_rows, write_settings

import curator
from curator.errors import ConfigError
from curator.rules import GATES


@pytest.fixture
def dagster(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return pytest.importorskip("dagster", reason="needs the extra [dagster]")


@pytest.fixture
def settings(learned):
    """The settings file of a lake that has a run; more is appended to it."""
    path = write_settings(learned.folder / "curator.toml", **FAST)
    with path.open("a") as file:
        file.write(
            f"[lake]\nurl = {json.dumps(str(learned.lake))}\n[target]\nurl = {json.dumps(str(learned.target))}\n"
        )
        file.write("[refresh]\nmax_share_change = 1.0\n")
    return path


def append(path, line):
    path.write_text(path.read_text() + line + "\n")


def materialize(dagster, asset):
    with dagster.DagsterInstance.ephemeral() as instance:
        return dagster.materialize([asset], instance=instance, raise_on_error=False)


def passed(result):
    return {evaluation.check_name: evaluation.passed for evaluation in result.get_asset_check_evaluations()}


def test_an_asset_is_materialized_with_its_checks_and_metadata(learned, settings, dagster):
    from curator.integrations.dagster import curator_assets

    append(settings, "verdicts = ['converged', 'not converged', 'no gain', 'unstable']")
    asset = curator_assets(settings, name="corpus")
    for version, outcome in ((1, "published"), (1, "nothing"), (2, "published")):
        if version == 2:
            write_rows(learned.lake / "more.parquet", text=sentences("east", 5, 5), domain=["east"] * 5)
        result = materialize(dagster, asset)
        assert result.success
        assert passed(result) == dict.fromkeys(GATES, True)
        (event,) = result.asset_materializations_for_node("refresh_corpus")
        assert event.asset_key.path == ["corpus"]
        told = {name: value.value for name, value in event.metadata.items()}
        assert (told["version"], told["outcome"], told["run_id"]) == (version, outcome, learned.run_id)
        assert event.tags["dagster/data_version"] == str(version)


def test_a_gate_that_does_not_pass_fails_its_check_and_makes_no_asset(learned, settings, dagster):
    from curator.integrations.dagster import curator_assets

    append(settings, "verdicts = []")
    result = materialize(dagster, curator_assets(settings, name="corpus"))
    assert {name for name, ok in passed(result).items() if not ok} == {"verdict"}
    assert not result.asset_materializations_for_node("refresh_corpus")
    with curator.open_lake(str(learned.lake)) as lake:
        assert lake.history() == []


def test_settings_without_a_lake_are_refused(tmp_path, dagster):
    from curator.integrations.dagster import curator_assets

    (tmp_path / "curator.toml").write_text("")
    with pytest.raises(ConfigError, match=r"names no lake; set lake\.url"):
        curator_assets(tmp_path / "curator.toml")


def test_the_schedule_of_the_example_asks_for_a_run_that_publishes(learned, settings, dagster, monkeypatch):
    """`examples/jobs/dagster_job.py` as Dagster's daemon uses it: a tick, the run that it asks for, its checks."""
    append(settings, "verdicts = ['converged', 'not converged', 'no gain', 'unstable']")
    monkeypatch.setenv("CURATOR_CONFIG", str(settings))
    example = runpy.run_path(str(REPOSITORY / "examples" / "jobs" / "dagster_job.py"))
    repository = example["definitions"].get_repository_def()
    (schedule,) = repository.schedule_defs
    assert schedule.cron_schedule == "17 3 * * *"
    job = repository.get_job(schedule.job_name)
    with dagster.DagsterInstance.ephemeral() as instance:
        for day, version, outcome in ((1, 1, "published"), (2, 1, "nothing")):
            night = datetime(2026, 11, day, 3, 17, tzinfo=UTC)
            with dagster.build_schedule_context(instance=instance, scheduled_execution_time=night) as context:
                (asked,) = schedule.evaluate_tick(context).run_requests
            assert dagster.validate_run_config(job, asked.run_config) is not None
            done = job.execute_in_process(run_config=asked.run_config, tags=asked.tags, instance=instance)
            assert done.success
            assert passed(done) == dict.fromkeys(GATES, True)
            (event,) = done.asset_materializations_for_node("refresh_corpus_weights")
            told = {name: value.value for name, value in event.metadata.items()}
            assert (told["version"], told["outcome"]) == (version, outcome)

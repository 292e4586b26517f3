"""Keep a lake's weights up to date from Dagster: `dagster dev -f examples/jobs/dagster_job.py`."""

import os

import dagster

from curator.integrations.dagster import curator_assets

weights = curator_assets(os.environ.get("CURATOR_CONFIG", "curator.toml"), name="corpus_weights")
job = dagster.define_asset_job("refresh_corpus", selection=[weights])

definitions = dagster.Definitions(
    assets=[weights],
    jobs=[job],
    schedules=[dagster.ScheduleDefinition(job=job, cron_schedule="17 3 * * *")],
)

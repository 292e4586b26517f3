"""Keep a lake's weights up to date from Airflow. Nothing of ours is imported: the task is a command.

The last line that the command prints is one JSON object, which becomes the task's XCom. Exit code 99 skips the task,
and with it the asset's event, so that what is scheduled on the asset runs only when there is a new version.
"""

import json
from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Asset, task

LAKE = Asset("s3://bucket/corpus/")

with DAG(
    dag_id="curator_refresh",
    schedule="17 3 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=15)},
):
    refresh = BashOperator(
        task_id="refresh",
        # 2 and 3 (bad settings, a gate) fail like the rest; Airflow has no exit codes that are not tried again.
        bash_command="curator refresh --config /etc/curator/corpus.toml --json --skip-exit-code",
        skip_on_exit_code=99,
        outlets=[LAKE],
    )

    @task
    def tell(line: str) -> None:
        done = json.loads(line)
        print(f"version {done['version']} of run {done['run_id']} in {done['table']}")

    tell(refresh.output)

"""An Airflow DAG (Airflow 3) that packs every night, and skips what follows where nothing was new.

BashOperator sends SIGTERM to the command when the task is stopped, and the next try goes on from the finished shards.
"""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

PACK = "/opt/tightpack/bin/tightpack pack --config /etc/tightpack/nightly.yaml --unchanged-exit-code 99"
VERIFY = "/opt/tightpack/bin/tightpack verify /data/packed/questions"

with DAG("tightpack_nightly", schedule="30 2 * * *", start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1):
    pack = BashOperator(
        task_id="pack",
        bash_command=PACK,
        skip_on_exit_code=99,
        retries=3,
        retry_delay=timedelta(minutes=5),
    )
    verify = BashOperator(task_id="verify", bash_command=VERIFY)
    pack >> verify

"""Airflow: the Dask work of a task is in the trace of the DAG run, and has the id of the DAG run.

If dask-otel is missing in Airflow's environment, the first task fails with ModuleNotFoundError. If it is missing on the
scheduler, the DAG works, and its trace has no spans of the cluster. The tasks' processes need the variables
DASK_DISTRIBUTED__CLIENT__PRELOAD=dask_otel and AIRFLOW__TRACES__OTEL_ON=true; the scheduler, to record the id,
DASK_OTEL__ANNOTATIONS=airflow_run.
"""

import dask
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, get_current_context, task
from distributed import Client
from opentelemetry.propagate import inject


def traceparent() -> str:
    """Return the id of the task's span, for a program that the task starts: Airflow does not hand it on."""
    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier.get("traceparent", "")


@dag(schedule=None, user_defined_macros={"traceparent": traceparent})
def dask_total():
    @task
    def total(n: int) -> int:
        instance = get_current_context()["ti"]
        with (
            Client(name=f"airflow-{instance.dag_id}-{instance.task_id}") as client,  # address: DASK_SCHEDULER_ADDRESS
            dask.annotate(airflow_run=instance.run_id),
        ):
            return client.submit(sum, range(n)).result()

    program = BashOperator(
        task_id="program",
        bash_command="opentelemetry-instrument python $BATCH_JOB",  # the path of batch_job.py
        env={"TRACEPARENT": "{{ traceparent() }}"},
        append_env=True,
    )
    total(4) >> program


dask_total()

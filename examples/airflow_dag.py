"""Airflow: the Dask work of a task is in the DAG run's trace, and has the id of the DAG run.

If dask-otel is missing on the scheduler, the DAG works, and its trace has no Dask spans. The scheduler needs the Dask
setting otel.annotations: [airflow_run], or the variable DASK_OTEL__ANNOTATIONS=airflow_run.
"""

import dask
from airflow.sdk import dag, get_current_context, task
from caller_trace import span_in_this_trace
from distributed import Client


@dag(schedule=None)
def dask_total():
    @task
    def total(n: int) -> int:
        instance = get_current_context()["ti"]
        with (
            Client(name=f"airflow-{instance.dag_id}-{instance.task_id}") as client,  # address: DASK_SCHEDULER_ADDRESS
            dask.annotate(airflow_run=instance.run_id),
            span_in_this_trace("total"),
        ):
            return client.submit(sum, range(n)).result()

    total(4)


dask_total()

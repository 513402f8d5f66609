"""MLflow: the run has the id of the trace as a tag, and the Dask span has the id of the run.

If dask-otel is missing in this process, ModuleNotFoundError: dask_otel.trace_id() is used here. If it is missing on the
scheduler, no spans are sent. The scheduler needs DASK_OTEL__ANNOTATIONS=mlflow_run.
"""

import dask
import mlflow
from distributed import Client, span

import dask_otel

if __name__ == "__main__":
    with (
        Client() as client,  # at the address in DASK_SCHEDULER_ADDRESS
        mlflow.start_run() as run,
        dask.annotate(mlflow_run=run.info.run_id),
        span("total"),
    ):
        mlflow.set_tag("dask.trace_id", dask_otel.trace_id())
        mlflow.log_metric("total", client.submit(sum, range(4)).result())
        print(run.info.run_id)

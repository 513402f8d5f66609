"""Prefect: the Dask work of a flow is in the trace of the flow run, and has the id of the flow run.

If dask-otel is missing in the flow's environment or on the scheduler, the flow works, and its trace has no spans of
the cluster. Start it with: opentelemetry-instrument python prefect_flow.py. To record the id, the scheduler needs
DASK_OTEL__ANNOTATIONS=prefect_run.
"""

import dask
from distributed import Client, span
from prefect import flow
from prefect.runtime import flow_run


@flow
def total(n: int) -> int:
    with (
        Client(name=f"prefect-{flow_run.name}") as client,  # at the address in DASK_SCHEDULER_ADDRESS
        dask.annotate(prefect_run=str(flow_run.id)),
        # A name of its own: that of the flow run is another one each time, and Dask keeps all names of spans.
        span("total"),
    ):
        return client.submit(sum, range(n)).result()


if __name__ == "__main__":
    print(total(4))

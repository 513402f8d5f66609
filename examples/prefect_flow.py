"""Prefect: the Dask work of a flow is in the flow run's trace, and has the id of the flow run.

If dask-otel is missing on the scheduler, the flow works, and its trace has no Dask spans. The scheduler needs the Dask
setting otel.annotations: [prefect_run], or the variable DASK_OTEL__ANNOTATIONS=prefect_run.
"""

import dask
from caller_trace import span_in_this_trace
from distributed import Client
from prefect import flow
from prefect.runtime import flow_run


@flow
def total(n: int) -> int:
    with (
        Client(name=f"prefect-{flow_run.name}") as client,  # at the address in DASK_SCHEDULER_ADDRESS
        dask.annotate(prefect_run=str(flow_run.id)),
        span_in_this_trace("total"),
    ):
        return client.submit(sum, range(n)).result()


if __name__ == "__main__":
    print(total(4))

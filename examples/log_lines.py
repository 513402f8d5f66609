"""Log lines with the id of the trace that shows the work: search the backend for it, or search the logs for a trace.

If dask-otel is missing in a process that logs, ModuleNotFoundError there: dask_otel.TaskFilter is used. If it is
missing on the scheduler, log lines have an id, and the backend has no trace with it.
"""

import logging

from distributed import Client, span

import dask_otel

log = logging.getLogger("analysis")


def log_trace_ids() -> None:
    handler = logging.StreamHandler()
    # On the handler: a logger's filter does not see the records of other loggers.
    handler.addFilter(dask_otel.TaskFilter())
    line = "%(asctime)s %(levelname)s trace_id=%(trace_id)s %(dask_key)s %(message)s"
    handler.setFormatter(logging.Formatter(line))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


def work(n: int) -> int:
    log.info("sum of %s numbers", n)
    return sum(range(n))


if __name__ == "__main__":
    log_trace_ids()
    with Client() as client:  # at the address in DASK_SCHEDULER_ADDRESS
        client.run(log_trace_ids)  # for log lines of tasks; the workers that are there now
        with span("total"):
            log.info("starts")
            print(client.submit(work, 4).result())

"""A program that a batch system starts: its Dask work is in the trace that TRACEPARENT in its environment names.

If dask-otel is missing in its environment, or on the scheduler, the program works, and is not in the trace. Start it
with: opentelemetry-instrument python batch_job.py
"""

from distributed import Client, span

if __name__ == "__main__":
    # Two spans: one of this program, one of the cluster. Without TRACEPARENT, the first is the top of a trace.
    with Client() as client, span("nightly report"):  # at the address in DASK_SCHEDULER_ADDRESS
        print(client.submit(sum, range(4)).result())

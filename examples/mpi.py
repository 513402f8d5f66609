"""dask-mpi: mpirun -n 3 python mpi.py. Rank 0 is the scheduler, rank 1 this program, the other ranks are workers.

If dask-otel is missing in the environment of rank 0, the scheduler does not start, and mpirun ends with an error.
"""

import getpass
import os
from urllib.parse import quote

import dask
from dask_mpi import initialize
from distributed import Client, span

os.environ.setdefault("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")
os.environ.setdefault("OTEL_RESOURCE_ATTRIBUTES", f"user.name={quote(getpass.getuser())}")
dask.config.set({"distributed.scheduler.preload": ["dask_otel"], "otel.cluster-name": f"mpi-{getpass.getuser()}"})

if __name__ == "__main__":
    initialize(nthreads=1)  # ranks 0 and 2 stay here until the end
    with Client() as client:
        with span("sum"):
            print(client.submit(sum, [1, 2]).result())
        print("dask-otel" in client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.plugins)))

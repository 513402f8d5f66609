"""dask-jobqueue: the scheduler runs in this process, the Slurm jobs are workers.

If dask-otel is missing in this process's environment, the cluster does not start: ModuleNotFoundError at SLURMCluster.
"""

import getpass
import os
from urllib.parse import quote

import dask
from dask_jobqueue import SLURMCluster

# Before the cluster is created. dask-otel reads OTEL_* variables when the scheduler starts.
os.environ.setdefault("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")
os.environ.setdefault("OTEL_RESOURCE_ATTRIBUTES", f"user.name={quote(getpass.getuser())}")
dask.config.set({"distributed.scheduler.preload": ["dask_otel"], "otel.cluster-name": f"slurm-{getpass.getuser()}"})

if __name__ == "__main__":
    with SLURMCluster(cores=4, memory="8GB", queue="regular", walltime="01:00:00") as cluster:
        # Workers need no dask-otel: the job's script does not name it.
        print(cluster.job_script())
        print("dask-otel" in cluster.scheduler.plugins)

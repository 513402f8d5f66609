"""KubeCluster of dask-kubernetes, which runs `dask-scheduler` without --preload: the variable works.

If dask-otel is missing in the image, the scheduler's container ends with ModuleNotFoundError, again and again.
"""

import getpass
from urllib.parse import quote

from dask_kubernetes.operator import make_cluster_spec

SPEC = make_cluster_spec(
    name="analysis",
    image="registry.example.com/dask-with-otel:2026.8.0",
    n_workers=2,
    # For the scheduler and the workers; a worker ignores these variables.
    env={
        "DASK_DISTRIBUTED__SCHEDULER__PRELOAD": "dask_otel",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.observability:4317",
        "DASK_OTEL__CLUSTER_NAME": "analysis",
        "OTEL_RESOURCE_ATTRIBUTES": f"user.name={quote(getpass.getuser())}",
    },
)
# A key, for the scheduler only: kubectl create secret generic otlp --from-literal headers=x-api-key=KEY
(scheduler,) = SPEC["spec"]["scheduler"]["spec"]["containers"]
secret = {"name": "otlp", "key": "headers", "optional": True}
scheduler["env"].append({"name": "OTEL_EXPORTER_OTLP_HEADERS", "valueFrom": {"secretKeyRef": secret}})

if __name__ == "__main__":
    from dask_kubernetes.operator import KubeCluster

    cluster = KubeCluster(custom_cluster_spec=SPEC)

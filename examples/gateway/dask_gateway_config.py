"""dask-gateway, in the server's configuration. Its own --preload makes Dask ignore the variable and the setting.

If dask-otel is missing in the cluster's image or environment, no cluster starts: "failed during startup".
"""

from urllib.parse import quote

from dask_gateway_server.options import Options

c = get_config()  # noqa: F821
c.ClusterConfig.scheduler_cmd = ["dask", "scheduler", "--preload", "dask_otel"]

VARIABLES = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


def for_user(options, user):
    """Put the user's name on each trace and metric. The cluster's name, dask.cluster.name, is there already."""
    return {"environment": VARIABLES | {"OTEL_RESOURCE_ATTRIBUTES": f"user.name={quote(user.name)}"}}


c.Backend.cluster_options = Options(handler=for_user)

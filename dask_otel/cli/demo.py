"""``dask-otel demo``: runs a workflow on a local cluster and shows its trace.

The workflow writes and reads a Parquet dataset, in nested spans; one step fails and one is retried. Dask's
documentation has these spans on its page "Spans"; here each ``compute()`` is inside its span, because a DataFrame keeps
only the span that is active then.
"""

from __future__ import annotations

import logging
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import click
import dask
import dask.dataframe as dd
import pandas as pd
from dask.datasets import timeseries
from distributed import Client, LocalCluster, span
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .. import OTelPlugin, config, trace_id
from ..errors import Remarks, SettingError
from ..otlp.environment import otlp_protocol, sdk_disabled
from ..otlp.transport import make_senders
from .receiver import Receiver, Span
from .waterfall import waterfall

__all__ = ["STEPS", "demo", "run"]

STEPS = ("data load", "ML preprocessing", "Model training", "Quality gate")
#: Seconds that the trace may take to arrive once the workflow is done.
TIMEOUT = 60.0


@click.command()
@click.option("--endpoint", metavar="URL", help="Send to this OTLP endpoint instead of drawing the trace here.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Also write the picture to this file.")
def demo(endpoint: str | None, svg: Path | None) -> None:
    """Run a workflow on a local cluster and show its trace."""
    _check_variables()
    # 110 columns where the width is not the terminal's, so that bars and remarks have room.
    console = Console(record=svg is not None)
    if console.width < 110 and not console.is_terminal:
        console = Console(record=svg is not None, width=110)
    if endpoint is None:
        with Receiver() as receiver:
            root_id, _ = _run_workflow(receiver.endpoints[otlp_protocol(Remarks())], console)
            spans = receiver.wait_for_trace(trace_id(root_id), TIMEOUT)
        _draw(spans, console)
        if svg:
            console.save_svg(str(svg), title="dask-otel demo")
    else:
        _check_endpoint(endpoint)
        root_id, unsent = _run_workflow(endpoint, console)
        if unsent:
            raise click.ClickException(f"{unsent} spans could not be sent to {endpoint}; see the log above")
        console.print(f"Trace [bold]{trace_id(root_id)}[/] was sent to {endpoint}")
        if link := _link(trace_id(root_id), endpoint):
            console.print(f"See it at {link}", soft_wrap=True)


def run(client: Client, folder: Path) -> Iterator[str]:
    """Run the workflow; yields the root span's id first, then the name of each step that is done.

    Parameters
    ----------
    folder
        Where to write the dataset; about 30 MB.
    """
    # Dask warns that building a DataFrame drops annotations; computing it does not.
    warnings.filterwarnings("ignore", message="Dask annotations .* detected")
    with span("Alice's workflow") as root_id:
        yield root_id
        with span(STEPS[0]):
            timeseries(end="2000-01-15", partition_freq="1d", freq="1s", seed=1).to_parquet(folder)
            yield STEPS[0]
        with span(STEPS[1]):
            means = dd.read_parquet(folder).groupby("name")[["x", "y"]].mean().compute()
            yield STEPS[1]
        with span(STEPS[2]):
            # The last one fails once, on purpose: Dask runs it again.
            failed = folder.with_suffix(".failed")
            models = client.map(_train, range(4), means=means, failed=failed, key="train", retries=1)
            client.gather(models)
            yield STEPS[2]
        with span(STEPS[3]):
            scores = client.map(_check_rows, models, key="check")
            client.gather(scores, errors="skip")
            yield STEPS[3]


def _train(seed: int, means: pd.DataFrame, failed: Path) -> float:
    if seed == 3 and not failed.exists():
        failed.touch()
        raise ConnectionError("the feature store did not answer")
    score = 0.0
    for _ in range(1500):
        score += float(means.sample(frac=0.5, random_state=seed)["x"].std())
    return score / 1500 + seed


def _check_rows(score: float) -> float:
    if score > 3:
        raise ValueError(f"score {score:.1f} is not plausible")
    return score


def _run_workflow(endpoint: str, console: Console) -> tuple[str, int]:
    """Run the workflow on a local cluster; return the root span's id and the number of spans that were not sent."""
    with _progress(console) as done, tempfile.TemporaryDirectory(prefix="dask-otel-demo-") as folder:
        # Two steps of the workflow fail on purpose: no need to log that.
        cluster = LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            # Without an address, its HTTP server would listen on Dask's usual port, where a person's cluster may be.
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            silence_logs=logging.CRITICAL,
        )
        with cluster, Client(cluster) as client:
            client.register_plugin(OTelPlugin(endpoint))
            plugin = cluster.scheduler.plugins[OTelPlugin.name]
            done("local cluster started")
            steps = run(client, Path(folder) / "dataset")
            root_id = next(steps)
            for name in steps:
                done(name)
            # While the workers are still there to deliver their metrics: closing a LocalCluster stops them first.
            cluster.sync(plugin.before_close)
            done("trace sent")
    return root_id, plugin.sink.unsent


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    """Show a progress bar; yields a function to call with the name of each step that is done."""
    columns = (SpinnerColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=len(STEPS) + 2)
        yield lambda name: progress.update(task, advance=1, description=name)


def _draw(spans: list[Span], console: Console) -> None:
    root = next(span for span in spans if not span.parent_id)
    console.print(f"{len(spans)} spans arrived over OTLP, as trace {root.trace_id}.\n", highlight=False)
    # The other columns need about 75 characters.
    console.print(waterfall(spans, width=max(10, min(30, console.width - 80))))


def _check_variables() -> None:
    """Fail at variables for which the bridge would stay off, since the cluster's log is silenced."""
    if sdk_disabled():
        raise click.ClickException("OTEL_SDK_DISABLED is true: nothing would be sent")
    try:
        config.check_limits()
        for sender in make_senders("http://localhost:4317"):
            sender.shutdown()
    except SettingError as error:
        raise click.ClickException(str(error)) from error


def _check_endpoint(endpoint: str) -> None:
    """Fail at an endpoint where nothing listens."""
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except (OSError, ValueError) as error:
        raise click.BadParameter(
            f"cannot connect to {endpoint!r} ({error}); give a URL like http://localhost:4317", param_hint="--endpoint"
        ) from error


def _link(trace: str, endpoint: str) -> str | None:
    """Link to the trace: by the setting ``otel.trace-url``, else to a Jaeger on the endpoint's host, if one answers."""
    if dask.config.get("otel.trace-url", None):
        return config.trace_url_template().replace("{trace_id}", trace)
    host = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").hostname
    jaeger = f"http://{host}:16686"
    try:
        with urlopen(f"{jaeger}/api/v3/services", timeout=5):
            return f"{jaeger}/trace/{trace}"
    except (URLError, OSError, ValueError):
        return None

"""``dask-otel demo``: runs a workflow on a local cluster and shows its trace.

The workflow writes and reads a Parquet dataset, in nested spans. One step fails, one task is retried, and one takes so
much longer than the others that most threads wait for it. Dask's documentation has these spans on its page "Spans";
here each ``compute()`` is inside its span, because a DataFrame keeps only the span that is active then.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from io import TextIOWrapper
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Event
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import click
import dask.dataframe as dd
import pandas as pd
from dask.datasets import timeseries
from distributed import Client, LocalCluster, span
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from .. import OTelPlugin, config, schema, trace_id
from ..errors import Remarks, SettingError
from ..otlp.environment import otlp_protocol, sdk_disabled
from ..otlp.transport import make_senders
from ..status.reasons import reasons
from .receiver import Receiver, Span
from .waterfall import SINGLE_TASK, waterfall

__all__ = ["STEPS", "demo", "run"]

STEPS = ("data load", "ML preprocessing", "Model training", "Quality gate")
#: How long each model is trained: the other threads wait for the third one.
_ROUNDS = (100, 100, 8000, 100)
#: Seconds that the trace may take to arrive once the workflow is done.
TIMEOUT = 60.0
#: Parts of the waterfall of thread time that are printed.
_MAX_PARTS = 5
#: The documentation's first page, in a checkout.
DOCUMENTATION = "docs/index.md"


@click.command()
@click.option("--endpoint", metavar="URL", help="Send to this OTLP endpoint instead of drawing the trace here.")
@click.option("--keep", is_flag=True, help="Keep the cluster until Ctrl-C, with dask-otel's page about it.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Also write the picture to this file.")
def demo(endpoint: str | None, keep: bool, svg: Path | None) -> None:
    """Run a workflow on a local cluster and show its trace."""
    signal.signal(signal.SIGTERM, _terminated)
    _check_variables()
    if endpoint is not None:
        _check_endpoint(endpoint)
    # Ctrl-C leaves futures behind that asyncio would log.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack the characters of bars and trees
    # A pipe or a file has no width.
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(record=svg is not None, width=None if has_width else 110)
    try:
        if endpoint is None:
            with Receiver() as receiver:
                _run_and_draw(receiver, console, keep, svg)
        else:
            _run_and_send(endpoint, console, keep)
    except KeyboardInterrupt:
        sys.exit(130)


def _terminated(number: int, frame: object) -> None:
    """Close the cluster as at Ctrl-C; a second signal ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    sys.exit(128 + number)


def _run_and_draw(receiver: Receiver, console: Console, keep: bool, svg: Path | None) -> None:
    with _workflow_cluster(console) as cluster:
        endpoint = receiver.endpoints[otlp_protocol(Remarks())]
        root_id, _ = _run_workflow(cluster, endpoint, "collecting the spans", console, keep)
        waiting = console.status("waiting until the spans have been idle for a while, which ends them")
        with waiting if keep else nullcontext():  # else they have ended already
            spans = receiver.wait_for_trace(trace_id(root_id), TIMEOUT)
        columns = _draw(spans, console)
        if svg:
            console.save_svg(str(svg), title="dask-otel demo")
        _legend(columns, console)
        _why(spans, console)
        _next_steps(console, keep)
        if keep:
            _keep(cluster, root_id, console)


def _run_and_send(endpoint: str, console: Console, keep: bool) -> None:
    with _workflow_cluster(console) as cluster:
        root_id, unsent = _run_workflow(cluster, endpoint, f"sending the trace to {endpoint}", console, keep)
        if unsent:
            raise click.ClickException(f"{unsent} spans could not be sent to {endpoint}; see the log above")
        when = "is being" if keep else "was"
        console.print(f"Trace [bold]{trace_id(root_id)}[/] {when} sent to {endpoint}", soft_wrap=True)
        console.print(_PURPOSE)
        if link := _link(trace_id(root_id), endpoint):
            console.print(f"See it at {link}", soft_wrap=True)
        if keep:
            _keep(cluster, root_id, console)


def run(client: Client, folder: Path) -> Iterator[str]:
    """Run the workflow; yields the root span's id first, then the name of each step before it runs.

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
            yield STEPS[0]
            timeseries(end="2000-01-15", partition_freq="1D", freq="1s", seed=1).to_parquet(folder)
        with span(STEPS[1]):
            yield STEPS[1]
            means = dd.read_parquet(folder).groupby("name")[["x", "y"]].mean().compute()
        with span(STEPS[2]):
            yield STEPS[2]
            # The last one fails once, on purpose: Dask runs it again.
            failed = folder.with_suffix(".failed")
            models = client.map(_train, range(4), _ROUNDS, means=means, failed=failed, key="train", retries=1)
            client.gather(models)
        with span(STEPS[3]):
            yield STEPS[3]
            scores = client.map(_check_rows, models, key="check")
            client.gather(scores, errors="skip")


def _train(seed: int, rounds: int, means: pd.DataFrame, failed: Path) -> float:
    if seed == 3 and not failed.exists():
        failed.touch()
        raise ConnectionError("the feature store did not answer")
    score = 0.0
    for _ in range(rounds):
        score += float(means.sample(frac=0.5, random_state=seed)["x"].std())
    return score / rounds + seed


def _check_rows(score: float) -> float:
    if score > 3:
        raise ValueError(f"score {score:.1f} is not plausible")
    return score


@contextmanager
def _workflow_cluster(console: Console) -> Iterator[LocalCluster]:
    """Start a local cluster whose processes ignore Ctrl-C: this process closes them, and a worker would log it."""
    # Threads, and the processes that they start, inherit the signal mask of the thread that starts them. The resource
    # tracker unblocks SIGINT in the thread that starts it, so it must run already.
    resource_tracker.ensure_running()
    mask: Any = getattr(signal, "pthread_sigmask", lambda how, signals: set())  # Windows has none
    before = mask(getattr(signal, "SIG_BLOCK", 0), {signal.SIGINT})
    try:
        with console.status("starting a local cluster"):
            # Two steps of the workflow fail on purpose: no need to log that.
            cluster = LocalCluster(
                n_workers=2,
                threads_per_worker=2,
                # Without an address, its HTTP server would listen on Dask's usual port, where another cluster may be.
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
                silence_logs=logging.CRITICAL,
            )
    finally:
        mask(getattr(signal, "SIG_SETMASK", 0), before)
    with cluster:
        yield cluster


def _run_workflow(
    cluster: LocalCluster, endpoint: str, last_step: str, console: Console, keep: bool
) -> tuple[str, int]:
    """Run the workflow; return the root span's id and the number of spans that were not sent.

    Parameters
    ----------
    last_step
        Names what is done after the workflow, unless the cluster is kept.
    """
    with (
        _progress(console) as begin,
        tempfile.TemporaryDirectory(prefix="dask-otel-demo-") as folder,
    ):
        begin("starting a client and dask-otel")
        with Client(cluster) as client:
            plugin: Any = OTelPlugin(endpoint)
            # Not by the client, which would print a line.
            cluster.sync(cluster.scheduler.register_scheduler_plugin, plugin, idempotent=False)
            steps = run(client, Path(folder) / "dataset")
            root_id = next(steps)
            for name in steps:
                begin(name)
            if keep:  # the bridge stays on, and ends the spans itself
                return root_id, 0
            begin(last_step)
            # While the workers are still there to deliver their metrics: closing a LocalCluster stops them first.
            cluster.sync(plugin.before_close)
    return root_id, plugin.sink.unsent


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    """Show a progress bar; yields a function to call with the name of each step before it runs."""
    columns = (SpinnerColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(STEPS) + 2)
        begun = 0

        def begin(name: str) -> None:
            nonlocal begun
            progress.update(task, completed=begun, description=name, refresh=True)
            begun += 1

        yield begin


_PURPOSE = (
    "One step fails, one task is run again, and one takes far longer than the others, on purpose: the trace shows "
    "where and why."
)


def _draw(spans: list[Span], console: Console) -> list[str]:
    """Print a description and the waterfall; return the names of its columns."""
    root = next(span for span in spans if not span.parent_id)
    tasks = root.attributes.get(schema.TASK_COUNT)
    console.print(
        f"What Dask's scheduler recorded of a workflow with {tasks} tasks on a local cluster, as {len(spans)} "
        f"OpenTelemetry spans of one trace. {_PURPOSE}",
        highlight=False,
    )
    console.print()
    picture = waterfall(spans, console.width)
    console.print(picture, highlight=False)
    console.print()
    return picture.plain.partition("\n")[0].split()


def _legend(columns: Sequence[str], console: Console) -> None:
    rows = {
        STEPS[0]: f'a part of the workflow, named in its code: with span("{STEPS[0]}"): …',
        "train": "a task group: all tasks of one function in that part",
        f"{SINGLE_TASK}check": "one task that failed, or that took much longer than the others of its group",
        "duration": "from the first activity to the last",
    }
    numbers = {
        "compute": "seconds of all tasks together; four threads compute at once",
        "busy": "how much of the cluster's threads' time this part used",
    }
    rows |= {name: text for name, text in numbers.items() if name in columns}
    for name, text in rows.items():
        first, *others = textwrap.wrap(text, max(20, console.width - 12))
        console.print(Text(f"{name:10}  ", style="cyan").append(first, style="default"))
        for line in others:
            console.print(f"{'':12}{line}", highlight=False)


def _why(spans: Sequence[Span], console: Console) -> None:
    """Print why the workflow took as long as it did: the verdict, and where the time went."""
    rows = [
        {"id": each.span_id, "name": each.name, "start": each.start, "attributes": each.attributes} for each in spans
    ]
    for found in reasons(rows):
        console.print("\nWhy it took so long:", style="bold")
        text = "".join(piece for piece, _ in found.text)
        if found.verdict:
            text = f"{found.verdict[0]}: {text} A cure saves at most {found.at_most}."
            text += f" Less costly: {', '.join(found.verdict[1:])}." if found.verdict[1:] else ""
        console.print(Text(text or found.withheld or "Nothing stands out: no cause took much of the time."))
        largest = sorted(found.parts, key=lambda part: -part.width)[:_MAX_PARTS]
        room = max(len(part.label) for part in largest)
        for part in largest:
            line = Text(f"  {part.label:{room}}  ").append(f"{part.seconds:>8} {part.share:>4}  ")
            console.print(line.append("█" * max(1, round(part.width / 4)), style="cyan"))


def _next_steps(console: Console, keep: bool) -> None:
    rows = {
        "your own cluster": "OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 "
        f"{_command('dask')} scheduler --preload dask_otel",
        "in Jaeger": f"{_command('dask-otel')} demo --endpoint http://localhost:4317",
        "dask-otel's page": f"{_command('dask-otel')} demo --keep",
        "documentation": DOCUMENTATION,
    }
    if keep:
        del rows["dask-otel's page"]
    console.print("\nNext:", style="bold")
    _links(rows, console)


def _command(name: str) -> str:
    """Return how to start a program of this environment, which need not be activated."""
    beside = Path(sys.argv[0]).with_name(name)
    return str(beside) if not shutil.which(name) and beside.exists() else name


def _links(rows: dict[str, str], console: Console) -> None:
    """Print commands and links in full, so that they can be copied."""
    for name, text in rows.items():
        console.print(Text(f"{name:16}  ", style="cyan").append(text, style="default"), soft_wrap=True)


def _keep(cluster: LocalCluster, root_id: str, console: Console) -> None:
    """Print the links to the page, and wait for Ctrl-C."""
    page = f"http://127.0.0.1:{cluster.scheduler.http_server.port}/otel/"
    rows = {"dask-otel's page": page, "its scheduler": cluster.scheduler_address}
    run = f"{page}run/{trace_id(root_id)}"
    with suppress(URLError, OSError), urlopen(run, timeout=5):  # not if the page shows no runs
        rows["its trace"] = run
    console.print()
    _links(rows, console)
    console.print("The cluster runs until Ctrl-C.")
    with suppress(KeyboardInterrupt):
        Event().wait()


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
    """Fail at an endpoint without a scheme, or where nothing listens."""
    if "://" not in endpoint:
        raise click.BadParameter(
            f"{endpoint!r} has no scheme; give a URL like http://localhost:4317", param_hint="--endpoint"
        )
    parts = urlsplit(endpoint)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except ValueError as error:
        raise click.BadParameter(
            f"{endpoint!r} has no usable port ({error}); give a URL like http://localhost:4317", param_hint="--endpoint"
        ) from error
    except OSError as error:
        raise click.BadParameter(
            f"cannot connect to {endpoint!r} ({error}); is a collector running there, and host and port right?",
            param_hint="--endpoint",
        ) from error


def _link(trace: str, endpoint: str) -> str | None:
    """Link to the trace: by the setting ``otel.trace-url``, else to a Jaeger on the endpoint's host, if one answers."""
    if template := config.trace_url_template():
        return template.replace("{trace_id}", trace)
    host = urlsplit(endpoint).hostname
    jaeger = f"http://{host}:16686"
    try:
        with urlopen(f"{jaeger}/api/v3/services", timeout=5):
            return f"{jaeger}/trace/{trace}"
    except (URLError, OSError, ValueError):
        return None

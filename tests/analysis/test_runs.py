"""Old runs as data: from a real cluster to a folder, and back with Dask's own numbers."""

from __future__ import annotations

import dask
from distributed import span, wait
from distributed.utils_test import gen_cluster
from support.clusters import TWO_WORKERS, one_clock
from support.environment import clear_variables
from support.loaded import loaded_spans
from support.task_groups import check_spans
from support.trees import check_shape, check_sums, tree

import dask_otel
from dask_otel.analysis import load

SETTINGS = {"otel.sweep-interval": "50ms", "otel.traces.idle-timeout": "300ms", "otel.client.phase-threshold": "1h"}


def fail(x):
    raise ValueError(f"bad {x}")


@gen_cluster(client=True, nthreads=TWO_WORKERS, config=SETTINGS)
async def test_numbers_from_the_folder_are_dasks_own(client, scheduler, *workers, tmp_path, monkeypatch):
    clear_variables(monkeypatch)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    plugin = dask_otel.OTelPlugin()
    with one_clock(), dask.config.set({"otel.traces.folder": str(tmp_path / "traces")}):
        await scheduler.register_scheduler_plugin(plugin, idempotent=False)
        with span("nightly"):
            with span("load"):
                first = client.map(bytes, range(20), key="read")
            total = client.submit(len, first, key="total")
            bad = client.submit(fail, total, key="bad")
        await wait([total, bad])
        await plugin.before_close()
        sent = plugin.sink.status()["exporters"]

    runs = load(tmp_path / "traces")
    spans = loaded_spans(runs)
    assert sum(sent[0]["sent"].values()) == len(spans)
    check_shape(spans)
    check_sums(spans)
    check_spans(scheduler, spans)
    (trace_id,) = runs.trace_ids
    assert sorted(tree(loaded_spans(runs.trace(trace_id)), "dask.task.count")) == [
        "    read [group] dask.task.count=20",
        "  bad [group] dask.task.count=1 Error: ValueError: 1 task erred; first: bad 20 dependency -> total",
        "  load [span] dask.task.count=20",
        "  total [group] dask.task.count=1 dependency -> read",
        "nightly [span] dask.task.count=22 Error: ValueError: 1 task erred; first: bad 20",
    ]
    assert repr(runs) == "<Runs: 1 traces, 2 spans, 3 groups, 1 tasks, 0 phases, 2 links, 0 others>"
    assert "in fail" in runs.tasks["exception.stacktrace"][0]

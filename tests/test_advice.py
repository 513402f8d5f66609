"""What the README and the pages advise has the effect that they promise, on real processes."""

from __future__ import annotations

import dask
import dask.array as da
import pytest
from distributed import span
from support.processes import cluster

from dask_otel import trace_id
from dask_otel.cli.receiver import Receiver

pytestmark = pytest.mark.slow


def groups_of_an_array_built_in_a_span(tmp_path, env):
    """Names of groups in the trace of the span in which an array was built; it is computed in another."""
    with (
        Receiver() as receiver,
        cluster(
            tmp_path, env={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoints["grpc"], **env}, workers=1
        ) as processes,
    ):
        with span("build") as build:
            array = da.ones((40, 40), chunks=20) + 1
        with span("compute") as compute:
            assert processes.client.compute(array.sum()).result() == 3200
        if env:
            spans = receiver.wait_for_trace(trace_id(build), 60)
        else:
            receiver.wait_for_trace(trace_id(compute), 60)
            spans = receiver.wait(bool, 60)
    return {each.name for each in spans if each.attributes["dask.span.root"] == "build"}


def test_arrays_keep_the_span_in_which_they_were_built_if_the_scheduler_does_not_fuse(tmp_path):
    found = groups_of_an_array_built_in_a_span(tmp_path, {"DASK_OPTIMIZATION__FUSE__ACTIVE": "False"})
    assert {"build", "add"} <= found


def test_arrays_lose_that_span_otherwise_also_if_the_client_does_not_fuse(tmp_path):

    with dask.config.set({"optimization.fuse.active": False}):
        assert groups_of_an_array_built_in_a_span(tmp_path, {}) == set()

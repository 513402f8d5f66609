"""Laps of random workloads, with faults, skew and several roots at once, against oracles that have the full record."""

from __future__ import annotations

import asyncio

import pytest
from support.acted import ActedCluster
from support.occupancy_oracle import occupancy
from support.path_oracle import LapPath, lap_paths

from dask_otel.diagnosis.parts import IDLE, Lap

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("first", range(0, 80, 20))
def test_laps_are_those_of_the_oracles(first):
    for seed in range(first, first + 20):
        cluster = asyncio.run(acted(seed))
        assert not cluster.plugin.safety.failures
        record = cluster.record.events
        paths = {(path.root, path.start): path for path in lap_paths(record) if path.is_over}
        laps = {(lap.root_id, lap.start): lap for lap in cluster.laps}
        assert laps.keys() == paths.keys()
        for key, lap in laps.items():
            seconds = lap.path.seconds + sum(lap.path.gaps.values())
            assert seconds == pytest.approx(lap.path.end - lap.path.start, abs=1e-6)
            assert of_lap(lap) == pytest.approx(of_path(paths[key]), abs=1e-6), f"path of {key}, seed {seed}"
            expected = occupancy(record, lap.root_id, lap.start, lap.end)
            threads = lap.occupied, lap.paused, lap.others
            own = expected.occupied, expected.paused, expected.others
            assert threads == pytest.approx(own, abs=1e-6), f"threads in {key}, seed {seed}"
            idle = {cause: lap.idle.get(cause, 0.0) for cause in IDLE}
            assert idle == pytest.approx({cause: expected.idle[cause] for cause in IDLE}, abs=1e-6), (
                f"{key}, seed {seed}"
            )


async def acted(seed: int) -> ActedCluster:
    async with ActedCluster(seed) as cluster:
        await cluster.run(2.0)
    return cluster


def of_lap(lap: Lap) -> dict[object, float]:
    """Seconds on its path by group and edge and by cause, and its end."""
    runs = {(*group, edge): getattr(on, edge) for group, on in lap.path.groups.items() for edge in ("data", "thread")}
    return {key: value for key, value in (runs | lap.path.gaps).items() if value > 1e-7} | {"end": lap.path.end}


def of_path(path: LapPath) -> dict[object, float]:
    """The same of what the oracle says."""
    runs = {(*group, edge): seconds for group, edges in path.groups.items() for edge, seconds in edges.items()}
    return {key: value for key, value in (runs | path.gaps).items() if value > 1e-7} | {"end": path.last.end}

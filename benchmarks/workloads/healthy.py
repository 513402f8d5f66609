"""Six healthy workloads: nothing in them would make them much faster on the cluster that they have."""

from __future__ import annotations

import time
from contextlib import ExitStack

import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import as_completed, span

from .cluster import Cluster, WorkerOptions, Workload
from .ill import burn

PROCESSES = (WorkerOptions(processes=2),)


def decompose(seed: int) -> float:
    matrix = np.random.default_rng(seed).random((300, 300))
    end, total = time.thread_time() + 0.5, 0.0
    while time.thread_time() < end:
        total += float(np.linalg.eigvalsh(matrix @ matrix.T)[0])
    return total


def balanced(cluster: Cluster) -> None:
    """Equal tasks of NumPy's, half a second each."""
    with span("decompose"):
        cluster.client.submit(max, cluster.client.map(decompose, range(40))).result()


def trips(day: int, rows: int = 300_000) -> pd.DataFrame:
    generator = np.random.default_rng(day)
    return pd.DataFrame(
        {
            "zone": generator.integers(0, 250, rows),
            "hour": generator.integers(0, 24, rows),
            "distance": generator.gamma(2.0, 2.0, rows),
            "fare": generator.gamma(3.0, 5.0, rows),
        }
    )


def with_features(frame: pd.DataFrame) -> pd.DataFrame:
    rank = frame.groupby("zone")["fare"].rank(pct=True)
    return frame.assign(per_km=frame.fare / frame.distance.clip(lower=0.1), rank=rank, log=np.log1p(frame.fare))


def dataframe(cluster: Cluster) -> None:
    """Features and an aggregation of days of trips."""
    with span("fares by zone"):
        frame = dd.from_map(trips, list(range(80))).map_partitions(with_features)
        frame.groupby(["zone", "hour"])[["per_km", "rank", "log"]].mean().compute()


def evaluate(number: int) -> float:
    return burn(0.1)


def short_tasks(cluster: Cluster) -> None:
    """Many tasks of a tenth of a second."""
    with span("evaluate"):
        cluster.client.submit(sum, cluster.client.map(evaluate, range(200))).result()


def fit(number: int) -> float:
    return burn(0.2 + number * 37 % 41 / 50)


def uneven(cluster: Cluster) -> None:
    """Tasks of 0.2 to 1 s; the last of them ends soon after the others."""
    with span("fit"):
        total = sum(future.result() for future in as_completed(cluster.client.map(fit, range(40))))
        assert total > 0


def notebook(cluster: Cluster) -> None:
    """Cells of a notebook, with pauses in which the person reads and thinks: one alone, and three in an open span."""
    with ExitStack() as session:
        for cell in range(4):
            frame = dd.from_map(trips, list(range(cell * 16, cell * 16 + 16))).map_partitions(with_features)
            frame.groupby("hour")[["per_km", "rank"]].mean().compute()
            if cell == 0:
                session.enter_context(span("exploration"))
            if cell < 3:
                time.sleep(2.5)


def load(number: int) -> np.ndarray:
    burn(0.25)
    return np.random.default_rng(number).random(200_000)


def normalise(part: np.ndarray) -> np.ndarray:
    burn(0.2)
    return (part - part.mean()) / part.std()


def train(parts: list[np.ndarray], fold: int) -> float:
    burn(0.4)
    return float(sum(part[fold] for part in parts))


def workflow(cluster: Cluster) -> None:
    """Steps, each in a span of its own."""
    client = cluster.client
    with span("workflow"):
        with span("load"):
            parts = client.map(load, range(24))
        with span("normalise"):
            parts = client.map(normalise, parts)
        with span("train"):
            some = parts[:4]
            scores = [client.submit(train, some, fold, pure=False) for fold in range(24)]
        with span("evaluate"):
            client.submit(max, scores).result()


HEALTHY = (
    Workload("balanced", balanced, PROCESSES),
    Workload("dataframe", dataframe, PROCESSES),
    Workload("short tasks", short_tasks, PROCESSES),
    Workload("uneven", uneven, PROCESSES),
    Workload("notebook", notebook, PROCESSES),
    Workload("workflow", workflow, PROCESSES),
)

"""Twelve ill workloads. In each of them, one cause takes by far the most time."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client, span, wait

from .cluster import Cluster, WorkerOptions, Workload

PROCESSES = (WorkerOptions(processes=2),)
FOUR = (WorkerOptions(processes=4),)
SLOW_NETWORK = (WorkerOptions(network=40e6),) * 4


# Oversubscribed: eight threads compress on two cores, in code that needs no lock of the interpreter.
def read_block(number: int) -> bytes:
    generator = np.random.default_rng(number)
    return generator.integers(0, 64, 4_000_000, dtype=np.uint8).tobytes()


def compressed_size(block: bytes) -> int:
    return len(zlib.compress(block, 6))


def oversubscribed(cluster: Cluster) -> None:
    """One worker with many more threads than the machine has cores."""
    with span("compress archive"):
        db.from_sequence(range(96), npartitions=96).map(read_block).map(compressed_size).sum().compute()


# GIL: parsing in Python, by threads of one process.
def read_lines(number: int, lines: int = 60_000) -> list[str]:
    generator = random.Random(number)
    return [f"{generator.randrange(256)}.{n % 200}.1.7 GET /{n % 97}/{n % 13} {200 + n % 5}" for n in range(lines)]


def parse(lines: list[str]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for _ in range(3):
        for line in lines:
            host, _, path, status = line.split()
            if int(status) < 204 and sum(int(part) for part in host.split(".")) % 2:
                counted[path.strip("/").partition("/")[0]] += 1
    return counted


def add_up(counters: list[Counter[str]]) -> Counter[str]:
    return sum(counters, Counter())


def count_requests(cluster: Cluster) -> None:
    """Count requests in logs: pure Python."""
    with span("count requests"):
        parts = [dask.delayed(parse)(dask.delayed(read_lines)(number)) for number in range(32)]
        dask.delayed(add_up)(parts).compute()


# I/O: pages of a slow service.
class SlowPages(BaseHTTPRequestHandler):
    """Answers after most of a second."""

    def do_GET(self) -> None:
        time.sleep(0.8)
        body = b"word " * 2000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@contextmanager
def slow_service() -> Iterator[str]:
    """Serve slow pages; the base of their addresses."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowPages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def fetch(url: str) -> str:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(f"GET {address.path} HTTP/1.0\r\nHost: {address.hostname}\r\n\r\n".encode())
    await writer.drain()
    answer = await reader.read()
    writer.close()
    return answer.decode()


def count_words(page: str) -> int:
    return len(page.split())


def crawl(cluster: Cluster) -> None:
    """Fetch pages in asynchronous tasks."""
    with slow_service() as base, span("crawl"):
        pages = cluster.client.map(fetch, [f"{base}/{number}" for number in range(48)])
        cluster.client.submit(sum, cluster.client.map(count_words, pages)).result()


# Skew: one customer has most of the orders.
def orders(day: int, rows: int = 40_000, salt: int = 1) -> pd.DataFrame:
    """Orders of a day; those of the large customer may be spread over several keys."""
    generator = np.random.default_rng(day)
    customer = generator.integers(1_000, 1_400, rows)
    is_large = generator.random(rows) < 0.9
    customer[is_large] = generator.integers(0, salt, is_large.sum())
    return pd.DataFrame({"customer": customer, "amount": generator.integers(1, 1_000, rows)})


def score_customers(frame: pd.DataFrame) -> pd.DataFrame:
    scores = {}
    for customer, amounts in frame.groupby("customer")["amount"]:
        score = 0.0
        for amount in amounts.tolist():
            for _ in range(250):
                score = score * 0.99 + amount % 7
        scores[customer] = score
    return pd.DataFrame({"customer": list(scores), "score": list(scores.values())}).astype(
        {"customer": "int64", "score": "float64"}
    )


def score_all_customers(salt: int, cluster: Cluster) -> None:
    """Score customers by all their orders: those of one customer are in one partition."""
    with span("score customers"):
        frame = dd.from_map(orders, list(range(16)), salt=salt).shuffle("customer", npartitions=16)
        frame.map_partitions(score_customers, meta={"customer": "int64", "score": "float64"}).score.mean().compute()


# Tail: the longest tasks come last.
def burn(seconds: float) -> float:
    """Use the processor for so many of its seconds, in small steps of Python."""
    end, total = time.thread_time() + seconds, 0.0
    while time.thread_time() < end:
        total += sum(number * 0.5 for number in range(2000))
    return total


def fit_region(number: int) -> float:
    return burn(0.12)


def fit_country(number: int, seconds: float) -> float:
    return burn(seconds)


def fit_models(cluster: Cluster) -> None:
    """Fit many small models, then two large ones that could have begun with them."""
    with span("fit models"):
        regions = cluster.client.map(fit_region, range(28))
        countries = cluster.client.map(fit_country, range(2), [3.5, 9.0])
        cluster.client.submit(len, regions + countries).result()


# Tiny tasks: a task for every number.
def price(number: int) -> float:
    return number * 1.19


def price_all(partitions: int, cluster: Cluster) -> None:
    """Some work on each of many numbers."""
    with span("prices"):
        db.from_sequence(range(6_000), npartitions=partitions).map(price).filter(bool).sum().compute()


# Large graph: many small chunks, of which each month needs few. Every ``compute`` sends the graph of all years.
def monthly_changes(cluster: Cluster) -> None:
    """Compute one month after the other from an array with 10,000 chunks."""
    days = da.random.default_rng(1).random((100_000, 50), chunks=(10, 50))
    changes = days[5:] - days[:-5]
    with span("monthly changes"):
        for month in range(5):
            changes[month * 100 : (month + 1) * 100].mean().compute()


# Transfers: chunks of time become chunks of space, for each variable, over a slow network.
def anomalies(chunks: tuple[int, int], cluster: Cluster) -> None:
    """Rechunk variables for an operation along time; each worker needs a piece of every chunk."""
    with dask.config.set({"array.rechunk.method": "tasks"}), span("anomalies"):
        for seed in range(2):
            data = da.random.default_rng(seed).random((4_800, 20_000), chunks=chunks)
            by_place = data.rechunk((-1, 1_000))
            (by_place.max(axis=0) - by_place.min(axis=0)).mean().compute()


# Spilling: data twice as large as memory, which is read again and again.
def load_images(block_info: dict | None = None) -> np.ndarray:
    shape = block_info[None]["chunk-shape"] if block_info else (1, 1)
    row = np.random.default_rng(block_info[None]["chunk-location"][0] if block_info else 0).random(shape[1])
    return np.tile(row, (shape[0], 1))


def standardise(cluster: Cluster) -> None:
    """Keep data that does not fit into memory, for several passes."""
    with span("standardise"):
        images = da.map_blocks(load_images, chunks=((1_500,) * 110, (1_000,)), dtype=float).persist()
        mean = images.mean(axis=0).compute()
        deviation = ((images - mean) ** 2).mean(axis=0).compute()
        (abs(images - mean) > 2 * deviation).sum().compute()


# No worker: the one with the resource comes late.
def preprocess(number: int) -> np.ndarray:
    return np.random.default_rng(number).random(burn(0.05) > 0 and 1000)


def train(batch: np.ndarray) -> float:
    return burn(0.1) + float(batch.sum())


def train_on_gpu(cluster: Cluster) -> None:
    """Train where there is a GPU; such a worker comes after nine seconds."""
    gpu = WorkerOptions(resources="GPU=1")
    with cluster.later((9.0, lambda: cluster.add(gpu))), span("train"):
        batches = cluster.client.map(preprocess, range(12))
        losses = cluster.client.map(train, batches, resources={"GPU": 1})
        cluster.client.submit(sum, losses).result()


# Late workers: the queue of a batch system.
def simulate(number: int) -> float:
    return burn(0.2)


def simulate_all(cluster: Cluster) -> None:
    """Submit to a cluster that has no workers yet."""
    one = WorkerOptions()
    with cluster.later((6.0, lambda: cluster.add(one)), (7.5, lambda: cluster.add(one))):
        simulate_with_workers(cluster)


def simulate_with_workers(cluster: Cluster) -> None:
    """Simulate, on the workers that are there."""
    with span("simulate"):
        cluster.client.submit(sum, cluster.client.map(simulate, range(30))).result()


# Lost work: worker processes are killed, with the results that they held.
def features(number: int) -> np.ndarray:
    burn(0.4)
    return np.ones(100_000)


def combine(features: list[np.ndarray]) -> float:
    return float(sum(each.sum() for each in features))


def lose_work(cluster: Cluster) -> None:
    """Compute features; both workers are killed, one after the other, when most is done."""
    pids = cluster.worker_pids()
    with span("features"):
        computed = cluster.client.map(features, range(24))
        total = cluster.client.submit(combine, computed)
        for pid in pids:
            wait_until_done(cluster.client, computed, 21)
            os.kill(pid, signal.SIGKILL)
            wait_until_lost(cluster.client, computed, 21)
        total.result()


def wait_until_done(client: Client, futures: list, number: int) -> None:
    while sum(each.done() for each in futures) < number:
        wait([each for each in futures if not each.done()], return_when="FIRST_COMPLETED")


def wait_until_lost(client: Client, futures: list, number: int) -> None:
    while sum(each.done() for each in futures) >= number:
        time.sleep(0.02)


ILL = (
    Workload(
        "oversubscribed", oversubscribed, (WorkerOptions(threads=8, memory="6GiB"),), frozenset({"oversubscribed"})
    ),
    Workload("gil", count_requests, (WorkerOptions(threads=4, memory="4GiB"),), frozenset({"gil"})),
    Workload("io", crawl, (WorkerOptions(processes=2, threads=2),), frozenset({"io"})),
    Workload("skew", partial(score_all_customers, 1), FOUR, frozenset({"skew"})),
    Workload("tail", fit_models, FOUR, frozenset({"stragglers"})),
    Workload("tiny tasks", partial(price_all, 3_000), PROCESSES, frozenset({"tiny_tasks"})),
    Workload("large graph", monthly_changes, PROCESSES, frozenset({"large_graph"})),
    Workload("transfers", partial(anomalies, (200, 20_000)), SLOW_NETWORK, frozenset({"transfers"})),
    Workload("spilling", standardise, (WorkerOptions(processes=2, memory="400MiB"),), frozenset({"spilling"})),
    Workload("no worker", train_on_gpu, PROCESSES, frozenset({"no_worker"})),
    Workload("late workers", simulate_all, (), frozenset({"late_workers"})),
    Workload("lost work", lose_work, PROCESSES, frozenset({"lost_work"})),
)

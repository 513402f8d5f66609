"""Keeps a cluster busy as several people would: ``python workload.py tcp://scheduler:8786``.

Some of it fails, and some has no span, as in life.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from asyncio import CancelledError
from collections.abc import Callable
from uuid import uuid4

import dask.array as da
from distributed import Client, span

#: What a person does: with a client, under a name, so many tasks.
Work = Callable[[Client, str, int], None]


def load(number: int, size: int) -> bytes:
    """Read for a while."""
    time.sleep(random.uniform(0.01, 0.15))
    return bytes(size)


def clean(data: bytes) -> int:
    """Compute for a while."""
    until = time.perf_counter() + random.uniform(0.005, 0.05)
    while time.perf_counter() < until:
        pass
    return len(data)


def fit(size: int, part: float) -> float:
    """Compute for longer; fail for a part of the inputs."""
    if random.random() < part:
        raise ValueError("the model does not converge")
    time.sleep(random.uniform(0.05, 0.3))
    return size * 0.5


def look(number: int) -> int:
    """Do next to nothing."""
    return number + 1


def keys(name: str, tasks: int) -> list[tuple[str, int]]:
    """Keys of a group of their own with a common prefix: else Dask would count tasks where others run the same."""
    group = f"{name}-{uuid4().hex}"
    return [(group, number) for number in range(tasks)]


def etl(client: Client, name: str, tasks: int) -> None:
    """Load and clean, then look at it."""
    with span(name):
        with span("data load"):
            parts = client.map(load, range(tasks), size=200_000, key=keys("load", tasks))
            sizes = client.map(clean, parts, key=keys("clean", tasks))
            client.gather(sizes)
        with span("statistics"):
            array = da.random.random((1500, 1500), chunks=300)
            (array @ array.T).mean().compute()


def training(client: Client, name: str, tasks: int) -> None:
    """Train models, of which a few fail."""
    with span(name):
        models = client.map(fit, range(tasks), part=random.choice((0.0, 0.0, 0.0, 0.02)), key=keys("fit", tasks))
        client.gather(models, errors="skip")


def unnamed(client: Client, name: str, tasks: int) -> None:
    """Work without a span."""
    client.gather(client.map(look, range(tasks), pure=False))


def person(address: str, work: Work, name: str, tasks: int, rounds: int | None) -> None:
    """Work, think, work again; with ``rounds`` None, for ever, whatever becomes of the cluster."""
    while True:
        try:
            with Client(address, set_as_default=False, name=name) as client, client.as_current():
                done = 0
                while rounds is None or done < rounds:
                    work(client, name, tasks)
                    done += 1
                    time.sleep(random.uniform(0.2, 2.0))
                return
        except (Exception, CancelledError) as error:  # with the cluster, anything may fail
            if rounds is not None:
                raise
            print(f"{name}: {type(error).__name__}: {error}; once more", file=sys.stderr)  # noqa: T201
            time.sleep(2.0)


def main(address: str, rounds: int | None = None) -> None:
    """Start everybody, and wait for them."""
    people = (
        (etl, "Alice's workflow", 40),
        (training, "Bob's training", 30),
        (etl, "nightly report", 80),
        (unnamed, "somebody", 20),
    )
    threads = [threading.Thread(target=person, args=(address, *each, rounds), daemon=True) for each in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)

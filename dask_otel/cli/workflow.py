"""The demo's workflow: a dataset written to and read from Parquet, nested spans, a step that fails and one that
is retried.

Dask's documentation shows these spans on its page "Spans"; here each ``compute()`` stands inside its span, because a
DataFrame keeps only the span that is active then.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import dask.dataframe as dd
import pandas as pd
from dask.datasets import timeseries
from distributed import Client, span

__all__ = ["STEPS", "run"]

STEPS = ("data load", "ML preprocessing", "Model training", "Quality gate")


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
        with span("data load"):
            timeseries(end="2000-01-15", partition_freq="1d", freq="1s", seed=1).to_parquet(folder)
            yield STEPS[0]
        with span("ML preprocessing"):
            means = dd.read_parquet(folder).groupby("name")[["x", "y"]].mean().compute()
            yield STEPS[1]
        with span("Model training"):
            # The last one fails once, on purpose: Dask runs it again.
            failed = folder.with_suffix(".failed")
            models = client.map(_train, range(4), means=means, failed=failed, key="train", retries=1)
            client.gather(models)
            yield STEPS[2]
        with span("Quality gate"):
            scores = client.map(_check, models, key="check")
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


def _check(score: float) -> float:
    if score > 3:
        raise ValueError(f"score {score:.1f} is not plausible")
    return score

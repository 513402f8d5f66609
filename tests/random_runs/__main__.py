"""``python -m random_runs``"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

import random_runs

from .run import run


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="random_runs", description=random_runs.__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the first run; the next has the next number")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    outcomes = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for outcome in pool.map(run, range(arguments.seed, arguments.seed + arguments.runs)):
            print(*outcome.differences, sep="\n", end="\n" if outcome.differences else "", flush=True)  # noqa: T201 -- a command line
            outcomes.append(outcome)
    faults, comparisons = sum(each.faults for each in outcomes), sum(each.comparisons for each in outcomes)
    differences = sum(len(each.differences) for each in outcomes)
    print(f"{len(outcomes)} runs, {faults} faults, {comparisons} comparisons, {differences} differences")  # noqa: T201
    split = [each for each in outcomes if each.tasks]
    tasks, collided, elsewhere = (
        sum(getattr(each, name) for each in split) for name in ("tasks", "collided", "elsewhere")
    )
    print(f"with split groups: {len(split)} runs, {tasks} tasks, {collided} collided, {elsewhere} requested again")  # noqa: T201
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())

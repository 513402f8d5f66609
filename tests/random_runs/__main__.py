"""``python -m random_runs``"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import random_runs

from .run import run


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="random_runs", description=random_runs.__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the first run; the next has the next number")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--inside", action="store_true", help="with tasks that use OpenTelemetry, over real OTLP")
    arguments = parser.parse_args()
    outcomes = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        seeds = range(arguments.seed, arguments.seed + arguments.runs)
        for outcome in pool.map(partial(run, inside=arguments.inside), seeds):
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
    calling = [each for each in outcomes if each.submissions]
    submissions, blocks = (sum(getattr(each, name) for each in calling) for name in ("submissions", "blocks"))
    print(f"with instrumented clients: {len(calling)} runs, {submissions} submissions, {blocks} blocks")  # noqa: T201
    if arguments.inside:
        people, tasks, lost, unreported = (
            sum(getattr(each, name) for each in outcomes)
            for name in ("worker_spans", "task_spans", "lost_parents", "unreported")
        )
        print(f"from workers: {people} spans, {tasks} of them of tasks; the parents of {lost} were lost with a process")  # noqa: T201
        print(f"lost with a connection: the reports of {unreported} spans")  # noqa: T201
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())

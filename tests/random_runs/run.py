"""One run, in a process of its own: what a broken cluster leaves behind must not disturb the next one."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import random
import sys
import traceback
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection

import dask
from distributed import Client, Scheduler
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from support.memory import MemoryPlugin
from support.task_groups import check_groups

from . import faults, work
from .accounts import dask_numbers
from .cluster import Cluster, Person
from .compare import Outcome, compare
from .plan import Plan
from .recorder import Recorder
from .submissions import Submissions

__all__ = ["run"]

#: Seconds that a run may take, and until its process is killed.
TIMEOUT, PATIENCE = 60, 75
# Not forked from this process, which has threads; but from one that has imported all.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


def run(seed: int) -> Outcome:
    """Carry out the plan of a seed and compare."""
    receive, send = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_run_apart, args=(seed, send))
    process.start()
    send.close()
    outcome = Outcome(seed)
    try:
        if receive.poll(PATIENCE):
            outcome = receive.recv()
        else:
            outcome.differ("-", "the event loop hangs", "-", "-")
    except EOFError:
        outcome.differ("-", "the process died", "-", "-")
    process.kill()
    process.join()
    receive.close()
    return outcome


def _run_apart(seed: int, send: Connection) -> None:
    logging.disable(logging.CRITICAL)
    try:
        outcome = asyncio.new_event_loop().run_until_complete(asyncio.wait_for(_run(Plan.of(seed)), TIMEOUT))
    except Exception as error:
        outcome = Outcome(seed)
        outcome.differ("-", "the run itself", repr(error), "-")
        traceback.print_exc()
    send.send(outcome)


async def _run(plan: Plan) -> Outcome:
    settings = {
        "distributed.comm.timeouts.connect": "3s",
        "distributed.worker.http.routes": [],
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.scheduler.allowed-failures": plan.allowed_failures,
        "distributed.scheduler.no-workers-timeout": plan.no_workers_timeout,
        "distributed.scheduler.worker-saturation": plan.worker_saturation,
        "dataframe.shuffle.method": "p2p",
    }
    dask.config.set(settings)
    outcome = Outcome(plan.seed, faults=sum(step.is_fault for step in plan.steps))
    rng = random.Random(plan.seed)
    plugin = MemoryPlugin(
        idle_timeout=plan.idle_timeout,
        max_segment=plan.max_segment,
        max_groups=plan.max_groups,
        slowest_tasks=5,  # so that the number of spans of tasks is known
        sweep_interval=plan.sweep_interval,
        split_groups=plan.split_groups,
    )
    plugin.sampler = ALWAYS_ON if plan.always_on else None
    async with Scheduler(host="127.0.0.1", port=0, dashboard_address=":0", dashboard=False, validate=True) as scheduler:
        recorder = Recorder(scheduler, Submissions(), split_groups=plan.split_groups)
        scheduler.add_plugin(recorder)
        await plugin.add_to(scheduler)
        async with AsyncExitStack() as stack:
            cluster = Cluster(scheduler, plan.memory_limit)
            for _ in range(plan.people):
                client = Client(scheduler.address, asynchronous=True, set_as_default=False)
                cluster.people.append(Person(await stack.enter_async_context(client)))
            for _ in range(plan.workers):
                await cluster.add_worker(rng)
            await _carry_out(plan, cluster, outcome)
            await cluster.finish(rng)
            _check_groups(outcome, scheduler, "the end")
            before = dask_numbers(scheduler, recorder)
            await plugin.before_close()
            after = dask_numbers(scheduler, recorder)
            if before != after:
                outcome.differ("-", "harness: not at rest", "-", "-")
            finished = plugin.output.status()["finished"]
            compare(outcome, plan, after, plugin.exporter.spans(), finished, recorder, scheduler)
            assert plugin.safety is not None
            for failure, count in plugin.safety.failures.items():
                outcome.differ("-", f"failed in {failure}", count, "-")
            await cluster.close_workers()
    return outcome


async def _carry_out(plan: Plan, cluster: Cluster, outcome: Outcome) -> None:
    heartbeats = asyncio.create_task(cluster.heartbeats(plan.pulse))
    rng = random.Random(plan.seed)
    for step in plan.steps:
        carry_out = getattr(faults if step.is_fault else work, step.name)
        people = rng.sample(cluster.people, 1 if step.is_fault else min(step.people, plan.people))
        seeds = [step.seed if step.is_alike else f"{step.seed} {number}" for number in range(len(people))]
        done = await asyncio.gather(
            *(carry_out(cluster, person, random.Random(seed)) for person, seed in zip(people, seeds, strict=True)),
            return_exceptions=True,
        )
        for error in done:  # Dask's own, on a broken cluster
            if error:
                print(f"seed {plan.seed}: {step.name}: {error!r}", file=sys.stderr)  # noqa: T201
        _check_groups(outcome, cluster.scheduler, step.name)
        await asyncio.sleep(step.pause)
    heartbeats.cancel()


def _check_groups(outcome: Outcome, scheduler: Scheduler, when: str) -> None:
    outcome.comparisons += 1
    try:
        check_groups(scheduler)
    except AssertionError as error:
        outcome.differ("-", f"task groups after {when}", error, "-")

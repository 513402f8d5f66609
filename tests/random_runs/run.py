"""One run, in a process of its own: what a broken cluster leaves behind must not disturb the next one."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import multiprocessing
import os
import random
import sys
import traceback
from contextlib import AsyncExitStack, nullcontext
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import dask
from distributed import Client, Scheduler
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from support.memory import MemoryPlugin
from support.task_groups import check_groups

from dask_otel.cli.receiver import Receiver
from dask_otel.scheduler import forgetting
from dask_otel.scheduler.forgetting import memory_of

from . import faults, uses, work
from .accounts import dask_numbers
from .apart import Spares, send_spans
from .caller_spans import check_caller_spans, check_client, check_metrics, is_of_program
from .callers import Callers, keep_spans
from .cluster import Cluster, Person
from .compare import Outcome, compare, lineage_of
from .paths import Paths
from .plan import Plan
from .recorder import Recorder
from .sending import PEOPLE, SendingPlugin, set_provider, worker_settings
from .submissions import note_submissions
from .worker_spans import check_worker_spans

__all__ = ["run"]

#: Seconds that a run may take, and until its process is killed.
TIMEOUT, PATIENCE = 60, 75
# Not forked from this process, which has threads; but from one that has imported all.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


def run(seed: int, *, inside: bool = False) -> Outcome:
    """Carry out the plan of a seed and compare.

    Parameters
    ----------
    inside
        Whether tasks use OpenTelemetry, and all spans are sent over OTLP.
    """
    receive, send = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_run_apart, args=(seed, inside, send))
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


def _run_apart(seed: int, inside: bool, send: Connection) -> None:
    logging.disable(logging.CRITICAL)
    faulthandler.dump_traceback_later((TIMEOUT + PATIENCE) / 2)
    plan = Plan.of(seed, inside=inside)
    try:
        # Before there are any threads.
        spares = Spares(plan.inside.processes + plan.kills) if plan.inside else None
        loop = asyncio.new_event_loop()
        outcome = loop.run_until_complete(asyncio.wait_for(_run(plan, spares), TIMEOUT))
        if plan.calling:
            loop.close()  # timers have the contexts in which they were set
            gc.collect()
            check_client(outcome)
    except Exception as error:
        outcome = Outcome(seed)
        outcome.differ("-", "the run itself", repr(error), "-")
        traceback.print_exc()
    send.send(outcome)


async def _run(plan: Plan, spares: Spares | None) -> Outcome:
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
    note_submissions()  # before clients are instrumented
    with Receiver() if plan.inside else nullcontext() as receiver:
        return await _run_on_cluster(plan, spares, receiver)


async def _run_on_cluster(plan: Plan, spares: Spares | None, receiver: Receiver | None) -> Outcome:
    outcome = Outcome(plan.seed, faults=sum(step.is_fault for step in plan.steps))
    rng = random.Random(plan.seed)
    plugin = _sending(plan, receiver) if receiver else _in_memory(plan)
    exporter = keep_spans(plan.calling.sampled) if plan.calling and not receiver else None
    callers = Callers(plan.calling, plan.seed, plan.phase_threshold) if plan.calling else None
    async with Scheduler(host="127.0.0.1", port=0, dashboard_address=":0", dashboard=False, validate=True) as scheduler:
        recorder = Recorder(scheduler, submissions=True, split_groups=plan.split_groups)
        scheduler.add_plugin(recorder)
        paths = Paths(scheduler)
        await scheduler.register_scheduler_plugin(plugin, idempotent=False)
        paths.follow(plugin)
        async with AsyncExitStack() as stack:
            cluster = Cluster(scheduler, plan.memory_limit, callers)
            for _ in range(plan.people):
                client = Client(scheduler.address, asynchronous=True, set_as_default=False)
                cluster.people.append(Person(await stack.enter_async_context(client)))
            for _ in range(plan.workers):
                await cluster.add_worker(rng)
            if plan.inside and receiver and spares:
                message = {"inside": plan.inside, "endpoints": receiver.endpoints, "settings": dask.config.config}
                cluster.start_apart = partial(spares.start, message)
                for _ in range(plan.inside.processes):
                    await cluster.add_apart(rng)
            await _carry_out(plan, cluster, outcome)
            await cluster.finish(rng)
            _check_groups(outcome, scheduler, "the end")
            sent = await _send_spans(cluster, outcome) if receiver else set()
            await cluster.deliver()
            before = dask_numbers(recorder)
            await plugin.before_close()
            after = dask_numbers(recorder)
            if before != after:
                outcome.differ("-", "harness: not at rest", "-", "-")
            spans = receiver.wait(lambda spans: True, timeout=1) if receiver else plugin.exporter.spans()
            finished = plugin.sink.status()["finished"]
            own = [each for each in spans if each.resource["service.name"] != PEOPLE]
            outcome.forgotten = memory_of(scheduler).roots
            compare(outcome, plan, after, own, finished, recorder)
            paths.check(outcome, own, lineage_of(recorder))
            if receiver:
                others = [each for each in spans if not is_of_program(each)]
                check_worker_spans(outcome, others, recorder, sent, cluster)
            if callers:
                check_metrics(outcome, scheduler, recorder)
                check_caller_spans(outcome, plan, [*spans, *(exporter.spans() if exporter else ())], recorder, callers)
            assert plugin.safety is not None
            for failure, count in plugin.safety.failures.items():
                outcome.differ("-", f"failed in {failure}", count, "-")
            await cluster.close_workers()
    return outcome


def _in_memory(plan: Plan) -> MemoryPlugin:
    plugin = MemoryPlugin(
        idle_timeout=plan.idle_timeout,
        max_segment=plan.max_segment,
        max_groups=plan.max_groups,
        slowest_tasks=5,  # so that the number of spans of tasks is known
        sweep_interval=plan.sweep_interval,
        split_groups=plan.split_groups,
        phase_threshold=plan.phase_threshold,
        forget_spans=plan.forget_spans,
    )
    forgetting.KEPT_NAMES = plan.kept_names
    plugin.sampler = ALWAYS_ON if plan.sampler == "always_on" else None
    return plugin


def _sending(plan: Plan, receiver: Receiver) -> SendingPlugin:
    """Have this process's workers and its scheduler send to a receiver."""
    assert plan.inside
    dask.config.set(worker_settings(plan.inside))
    set_provider(plan.inside, receiver.endpoints, str(os.getpid()), plan.calling.sampled if plan.calling else 1.0)
    uses.begin()
    return SendingPlugin(plan, plan.inside, receiver)


async def _send_spans(cluster: Cluster, outcome: Outcome) -> set[str]:
    """Have all spans of workers' processes sent; return those that have, by ``service.instance.id``."""
    failed = await cluster.run_apart(send_spans)
    sent = {each.instance for each in cluster.apart if each.address in failed} | {str(os.getpid())}
    failed |= {each.address: await send_spans(each) for each in cluster.workers if "dask-otel" in each.plugins}
    for address, what in failed.items():
        outcome.check(address, "failed in", what, [])
    return sent


async def _carry_out(plan: Plan, cluster: Cluster, outcome: Outcome) -> None:
    heartbeats = asyncio.create_task(cluster.heartbeats(plan.pulse))
    rng = random.Random(plan.seed)
    for step in plan.steps:
        carry_out = getattr(faults if step.is_fault else work, step.name)
        people = rng.sample(cluster.people, 1 if step.is_fault else min(step.people, plan.people))
        seeds = [step.seed if step.is_alike else f"{step.seed} {number}" for number in range(len(people))]

        async def do(person: Person, seed: Any, carry_out: Any = carry_out) -> None:
            with cluster.around():
                await carry_out(cluster, person, random.Random(seed))

        with cluster.around():
            done = await asyncio.gather(*map(do, people, seeds), return_exceptions=True)
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

"""What is judged of a run: facts in, findings out. The numbers of several cases are those of real clusters."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from math import isfinite
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_otel.diagnosis.evidence import ClusterEvidence, Departure, Failures, GraphFacts, GroupFacts, RunFacts
from dask_otel.diagnosis.findings import FINDINGS, HINTS
from dask_otel.diagnosis.parts import GAPS, PARTS, CriticalPath, GroupKey, OnPath, Step, Waterfall
from dask_otel.diagnosis.quantities import number, percent, seconds, size
from dask_otel.diagnosis.rules import LONG, RULES, SHARE, SKEWED
from dask_otel.diagnosis.verdict import (
    LARGE_RESULTS,
    LEAST_SECONDS,
    LEAST_TASKS,
    LONG_FOR_FEW,
    LONG_RUN,
    UNUSED,
    WORTH,
    Verdict,
    judge,
)
from dask_otel.privacy import Capture, Redactor


def group(prefix="work", tasks=100, compute=40.0, p50=0.4, longest=None, **more):
    longest = p50 * 1.2 if longest is None else longest
    key = GroupKey("span", prefix)
    return GroupFacts(key, Step(("etl",), prefix), tasks, tasks, compute, p50, longest, **more)


def run(parts, *groups, threads=4.0, lasted=10.0, gaps=None, cluster=None, **more):
    """A run with these shares of the wall; the rest is CPU time."""
    walls = {part: share * lasted * threads for part, share in parts.items()}
    walls["cpu"] = threads * lasted - sum(walls.values())
    groups = groups or (group(),)
    path = CriticalPath(0.0, lasted, {each.key: each.critical for each in groups if each.critical}, gaps or {})
    return RunFacts(Waterfall(walls, threads, lasted), path, groups, cluster=ClusterEvidence(**(cluster or {})), **more)


#: As seen with four threads on two cores: Python code, functions that release the lock, and sleep.
PYTHON = {"process_cpu": 0.97, "process_threads": 4.0, "process_tasks": 4.0, "worker_loop_delay": 0.05}
RELEASES = {"process_cpu": 1.67, "process_threads": 4.0, "process_tasks": 4.0, "worker_loop_delay": 0.0}
SLEEPS = {"process_cpu": 0.07, "process_threads": 4.0, "process_tasks": 4.0, "worker_loop_delay": 0.0}
ONE_MACHINE = {"machine_cpus": 2.0, "machine_tasks": 4.0}
LATE = {"late_ticks": 3.0}
SHORT = group(tasks=4000, compute=4.0, p50=0.001)


CASES = {
    # Part noncpu.
    "python code in threads": (
        run({"noncpu": 0.75}, cluster={**PYTHON, **ONE_MACHINE, "machine_cpu": 0.97}),
        ["gil"],
    ),
    "python code in threads, on a machine that others use, too": (
        run({"noncpu": 0.75}, cluster={**PYTHON, **ONE_MACHINE, "machine_cpu": 0.97, "machine_busy": 1.9}),
        [],
    ),
    "threads that a task started, on all cores": (
        run({"tail": 0.6, "noncpu": 0.0}, cluster={**RELEASES, "process_cpu": 3.8, "process_tasks": 1.0}),
        [],
    ),
    "the last tasks of a wide step, which another step waits for": (
        run({"dependencies": 0.4}, group(tasks=30, compute=22.0, p50=1.5, longest=4.0), group("sum", 1, 0.1, 0.1)),
        ["stragglers"],
    ),
    "two long tasks beside many short ones, and a step that waits for all": (
        run({"dependencies": 0.4}, group(tasks=28, compute=14.0, p50=0.5), group("long", 2, 12.5, 3.5, longest=9.0)),
        ["stragglers"],
    ),
    "a partition with most of the data, on a worker that has others, too": (
        run({"imbalance": 0.5}, group(tasks=40, compute=14.0, p50=0.1, longest=6.0)),
        ["skew"],
    ),
    "tasks of 52 ms that pay 5 ms": (
        run(
            {"overhead": 0.08, "handed": 0.03, "noncpu": 0.1},
            group(tasks=682, compute=35.5, p50=0.05),
            threads=2.0,
            lasted=22.0,
        ),
        [],
    ),
    "several graphs of which most is not needed": (
        run({"graph": 0.34, "client": 0.5}, lasted=6.9, graphs=GraphFacts(count=5, tasks=60, size=400_000)),
        ["large_graph"],
    ),
    "a first graph, with which the scheduler imports packages": (
        run({"graph": 0.15}, lasted=5.1, graphs=GraphFacts(count=1, tasks=65, size=4_000)),
        [],
    ),
    "few submitted at a time": (
        run({"tail": 0.7}, group(tasks=100, compute=12.0, p50=0.1), graphs=GraphFacts(count=100)),
        ["narrow_graph"],
    ),
    "python code in threads, where nobody knows the machine": (run({"noncpu": 0.75}, cluster=PYTHON), ["gil"]),
    "the lock, as gilknocker measures it": (
        run({"noncpu": 0.75}, cluster={**PYTHON, "process_cpu": 1.5, "gil_contention": 0.9}),
        ["gil"],
    ),
    "not the lock, as gilknocker measures it, but cores of a container": (
        run({"noncpu": 0.75}, cluster={**PYTHON, "gil_contention": 0.1, "machine_cpus": 16.0, "machine_tasks": 4.0}),
        [],
    ),
    "half of the time on a processor, where nobody knows how many there are": (
        run({"noncpu": 0.5}, cluster={**RELEASES, "process_machine_cpu": 1.67}),
        [],
    ),
    "little of it, by several processes of a machine that nobody knows": (
        run({"noncpu": 0.8}, cluster={**RELEASES, "process_cpu": 0.4, "process_machine_cpu": 1.6}),
        [],
    ),
    "half of the time on a processor of a machine with many": (
        run({"noncpu": 0.5}, cluster={**RELEASES, "machine_cpus": 16.0, "machine_tasks": 4.0, "machine_cpu": 1.67}),
        ["io"],
    ),
    "the lock, on a machine that has no second core": (
        run({"noncpu": 0.75}, cluster={**PYTHON, "machine_cpus": 1.0, "machine_tasks": 4.0, "machine_cpu": 0.97}),
        ["oversubscribed"],
    ),
    "functions that release the lock": (
        run({"noncpu": 0.58}, cluster={**RELEASES, **ONE_MACHINE, "machine_cpu": 1.67}),
        ["oversubscribed"],
    ),
    "functions that release the lock, where others use the machine, too": (
        run(
            {"noncpu": 0.7},
            cluster={**RELEASES, **ONE_MACHINE, "process_cpu": 1.1, "machine_cpu": 1.1, "machine_busy": 2.0},
        ),
        ["oversubscribed"],
    ),
    "more processes than cores": (
        run(
            {"noncpu": 0.6},
            cluster={**RELEASES, **ONE_MACHINE, "process_cpu": 0.4, "process_tasks": 1.0, "machine_cpu": 1.6},
        ),
        ["oversubscribed"],
    ),
    "threads of a library": (
        run(
            {"noncpu": 0.5},
            cluster={
                **RELEASES,
                "process_cpu": 7.8,
                "machine_cpus": 8.0,
                "machine_tasks": 4.0,
                "machine_cpu": 7.8,
            },
        ),
        ["oversubscribed"],
    ),
    "sleep": (
        run({"noncpu": 0.99}, cluster={**SLEEPS, **ONE_MACHINE, "machine_cpu": 0.07, "machine_busy": 2.0}),
        ["io"],
    ),
    "async functions that wait": (
        run({"noncpu": 0.99}, group(cpu=0.0, noncpu=39.0), cluster={**SLEEPS, "process_cpu": 0.3}),
        ["io"],
    ),
    "async functions that compute": (
        run({"noncpu": 0.99}, cluster={**PYTHON, "worker_loop_delay": 0.4}),
        ["busy_worker"],
    ),
    "a machine that others use": (
        run(
            {"noncpu": 0.4},
            cluster={**RELEASES, "process_cpu": 1.2, "process_tasks": 2.0, "machine_cpus": 2.0, "machine_tasks": 2.0}
            | {"machine_busy": 2.0},
        ),
        [],
    ),
    "a little waiting": (run({"noncpu": 0.15}, cluster=SLEEPS), []),
    "waiting, but no heartbeat came meanwhile": (run({"noncpu": 0.8}), []),
    # Parts disk, serialize, paused.
    "spilling": (
        run({"disk": 0.2, "serialize": 0.08, "handed": 0.05, "overhead": 0.04}, cluster={"spilled": 2**30}),
        ["spilling"],
    ),
    "paused with data on disk": (run({"paused": 0.3}, cluster={"spilled": 2**30, "unmanaged": 0.6}), ["spilling"]),
    "paused by other memory": (run({"paused": 0.3}, cluster={"unmanaged": 0.9}), ["unmanaged_memory"]),
    "the memory monitor writes": (
        run({"handed": 0.3}, cluster={"background_disk": 2.0, "process_threads": 4.0}),
        ["spilling"],
    ),
    "large arguments": (run({"serialize": 0.2}), ["transfers"]),
    "a shuffle": (run({"p2p": 0.4}), ["p2p"]),
    "a small shuffle": (run({"p2p": 0.2}), []),
    # Parts handed, overhead, queued.
    "tiny tasks": (run({"overhead": 0.3, "handed": 0.2, "queued": 0.2}, SHORT), ["tiny_tasks"]),
    "none of the parts is large, their sum is": (
        run({"overhead": 0.06, "handed": 0.06, "queued": 0.06}, SHORT),
        ["tiny_tasks"],
    ),
    "tiny tasks, and hence a busy scheduler": (run({"queued": 0.5}, SHORT, cluster=LATE), ["tiny_tasks"]),
    "transfers": (
        run({"handed": 0.4}, gaps={"input": 3.0}, cluster={"receiving": 30.0, "sent_bytes": 10**9}),
        ["transfers"],
    ),
    "transfers that keep the loops of the workers busy": (
        run({"handed": 0.07, "overhead": 0.2}, cluster={"receiving": 12.0, "sent_bytes": 4 * 10**8}),
        ["transfers"],
    ),
    "inputs that are long on their way, and nobody knows how much it is": (
        run({"handed": 0.2}, gaps={"input": 1.5, "dispatch": 0.2}),
        ["transfers"],
    ),
    "transfers between short tasks": (
        run({"handed": 0.4}, SHORT, cluster={"receiving": 30.0, "sent_bytes": 10**10}),
        ["transfers"],
    ),
    "small transfers between tiny tasks": (
        run({"handed": 0.4}, SHORT, cluster={"receiving": 30.0, "sent_bytes": 10**6}),
        ["tiny_tasks"],
    ),
    "a busy scheduler": (run({"handed": 0.2, "queued": 0.2}, cluster=LATE), ["scheduler_bound"]),
    "a scheduler that collects garbage": (
        run({"handed": 0.2}, cluster={"garbage_collection": 2.0}),
        ["scheduler_bound"],
    ),
    "queued though threads are idle": (run({"queued": 0.2}), ["scheduler_bound"]),
    "a loop that is late because of the lock": (
        run({"noncpu": 0.6, "handed": 0.15, "overhead": 0.05}, cluster=PYTHON),
        ["gil"],
    ),
    "a late loop": (run({"handed": 0.2, "overhead": 0.1}, cluster={"worker_loop_delay": 0.3}), ["busy_worker"]),
    "handed out, and nobody knows why it does not run": (run({"handed": 0.2}), []),
    "short tasks wait for longer than it takes to hand them out": (
        run({"handed": 0.4}, group(tasks=100, compute=5.0, p50=0.05)),
        [],
    ),
    "a pool of processes": (
        run({"overhead": 1.0}, group(compute=39.0), cluster={"worker_loop_delay": 0.3}),
        [],
    ),
    # Idle threads.
    "one task is longer than all others": (run({"tail": 0.5}, group(p50=0.2, longest=6.0)), ["skew"]),
    "one task is longer than most, and has more data": (
        run({"tail": 0.5}, group(p50=1.0, longest=6.0, output=10**8, largest_output=9 * 10**7)),
        ["skew"],
    ),
    "the last tasks are long": (run({"tail": 0.4}, group(p50=1.0, longest=5.0)), ["stragglers"]),
    "all wait for one": (run({"dependencies": 0.5}, group(p50=0.2, longest=6.0), group("sum", 1, 0.1, 0.1)), ["skew"]),
    "nine equal tasks for eight threads": (
        run({"tail": 0.44}, group(tasks=9, compute=9.0, p50=1.0), threads=8.0, lasted=2.0),
        ["stragglers"],
    ),
    "the last of five waves": (run({"tail": 0.15}, group(tasks=20, p50=2.0)), []),
    "five tasks for eight threads": (
        run({"tail": 0.375}, group(tasks=5, compute=45.0, p50=9.0), threads=8.0),
        ["narrow_graph"],
    ),
    "a chain": (run({"dependencies": 0.75}, group(tasks=50, compute=10.0, p50=0.2)), ["narrow_graph"]),
    "three stages, each with a last wave": (
        run({"dependencies": 0.18}, *(group(name, 20, 12.0, 0.6) for name in "abc")),
        [],
    ),
    "a chain with one task that is longer": (
        run({"dependencies": 0.6}, group(tasks=50, compute=10.0, p50=0.05, longest=0.8)),
        ["narrow_graph"],
    ),
    "restrictions": (run({"no_worker": 0.5}, gaps={"no_worker": 4.0}), ["no_worker"]),
    "restrictions, and then one worker that meets them": (run({"no_worker": 0.2, "imbalance": 0.3}), ["no_worker"]),
    "two tasks for each thread of some workers": (run({"imbalance": 0.3}), ["imbalance"]),
    "the last tasks are not stolen": (run({"imbalance": 0.12}, group(p50=1.0)), []),
    "a large graph": (run({"graph": 0.4}, graphs=GraphFacts(1, 40_000, 50 * 2**20)), ["large_graph"]),
    "a notebook": (
        run({"client": 0.7, "graph": 0.12, "tail": 0.05}, graphs=GraphFacts(9, 300, 10**5)),
        [],
    ),
    # Workers that come and go.
    "no worker yet": (run({"starting": 0.4}), ["late_workers"]),
    "few threads at first": (
        run({}, threads=4.0, cluster={"threads_start": 1, "threads_most": 8}),
        ["late_workers"],
    ),
    "a worker left": (run({}, cluster={"threads_start": 5, "threads_most": 5}), []),
    "a cluster that has grown at once, and shrunk for the last task": (
        run({}, threads=5.0, lasted=1800.0, lacked=400.0, cluster={"threads_start": 4, "threads_most": 40}),
        [],
    ),
    "few threads at first, and a task that takes all of the time": (
        run({}, group(critical=OnPath(data=9.9)), gaps={"graph": 0.1}, cluster={"threads_start": 1, "threads_most": 8}),
        [],
    ),
    "workers that come one by one": (
        run({"starting": 0.1}, threads=40.0, lacked=360.0, cluster={"threads_start": 0, "threads_most": 80}),
        ["late_workers"],
    ),
    "lost work": (
        run(
            {"handed": 0.3, "lost": 0.2},
            group(recomputed=20, lost=4),
            metrics_complete=False,
            cluster={"departures": (Departure(950, 1000, 4, 20, "load"),), "departed": 1},
        ),
        ["lost_work"],
    ),
    "failed work": (run({"lost": 0.3}, failures=Failures(erred=4, retried=8)), ["failed_work"]),
    "failed work, and a result that was lost": (
        run({"lost": 0.3}, group(recomputed=1), failures=Failures(erred=4, retried=8)),
        ["failed_work"],
    ),
    # Others, and nothing.
    "others have the threads": (run({"others": 0.8}), []),
    "healthy": (run({"noncpu": 0.05, "handed": 0.03, "overhead": 0.02, "tail": 0.05, "graph": 0.02}), []),
    "too short": (run({"noncpu": 0.9}, lasted=0.8, cluster=SLEEPS), []),
    "too few tasks": (run({"dependencies": 0.75}, group(tasks=3, p50=3.0)), []),
    "too few tasks in a short run": (run({"noncpu": 0.8}, group(tasks=3), lasted=9.0, cluster=SLEEPS), []),
    "a few tasks that waited for long": (
        run({"noncpu": 0.8, "tail": 0.1}, group(tasks=3, p50=600.0), lasted=2400.0, cluster=SLEEPS),
        ["io"],
    ),
    "two causes": (
        run({"noncpu": 0.3, "tail": 0.4}, group(p50=0.2, longest=6.0), cluster=SLEEPS),
        ["skew", "io"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_cause(case):
    facts, ids = CASES[case]
    assert [finding.id for finding in judge(facts).findings] == ids


def test_every_finding_and_hint_is_one_that_some_case_has():
    assert {id_ for _, ids in CASES.values() for id_ in ids} == set(FINDINGS)


TEXTS = {
    "python code in threads": "Tasks waited in their threads for 7.5 s of 10 s while a worker process with 4 tasks at "
    "a time used 1.0 cores: either Python's interpreter lock lets one thread run at a time, or the "
    "worker may use only one core.",
    "functions that release the lock": "Tasks waited in their threads for 5.8 s of 10 s: 4 tasks ran at a time on 2 "
    "cores, of which 1.7 were in use.",
    "threads of a library": "Tasks waited in their threads for 5 s of 10 s: 4 tasks ran at a time on 8 cores, of which "
    "7.8 were in use, also by threads that the tasks started.",
    "sleep": "Tasks waited in their threads for 9.9 s of 10 s while a worker process with 4 tasks at a time used 0.1 "
    "cores.",
    "async functions that compute": "Tasks waited in their threads for 9.9 s of 10 s without using a processor there, "
    "and ticks of the workers' event loop were 0.4 s late.",
    "spilling": "Reading and writing on disk took 2 s of 10 s: up to 1.0 GiB were on disk.",
    "paused by other memory": "Threads of paused workers stood still for 3 s of 10 s: 90 % of the memory was not "
    "managed by Dask.",
    "large arguments": "Serialising and compressing data took 2 s of 10 s.",
    "a shuffle": "Shuffling between workers took 4 s of 10 s.",
    "tiny tasks": "4,000 tasks took 1 ms each, and workers needed 3 ms for each of them.",
    "transfers": "For 4 s of 10 s, threads had tasks that did not run yet while workers sent 954 MiB.",
    "a busy scheduler": "For 2 s of 10 s, threads had tasks that did not run yet, and ticks of the scheduler's event "
    "loop were late for 3 s in all.",
    "queued though threads are idle": "Threads were idle for 2 s of 10 s though tasks were queued.",
    "one task is longer than most, and has more data": "Threads were idle for 5 s of 10 s while the last tasks ran: "
    "the longest task of 'etl / work' took 6 s, the median one 1 s, and the largest result has 86 MiB, "
    "the mean 977 KiB.",
    "nine equal tasks for eight threads": "Threads were idle for 0.88 s of 2 s while the last tasks ran: the longest, "
    "of 'etl / work', took 1.2 s.",
    "a chain": "Threads were idle for 7.5 s of 10 s while all other tasks waited for results: 1.0 tasks ran at a time, "
    "as a mean, on 4 threads.",
    "restrictions": "Threads were idle for 5 s of 10 s while tasks waited for a worker that they may run on.",
    "two tasks for each thread of some workers": "Threads were idle for 3 s of 10 s while other workers had more tasks "
    "than threads.",
    "a large graph": "Threads were idle for 4 s of 10 s while graphs were sent and taken in; the largest graph has "
    "40,000 tasks and 50 MiB.",
    "no worker yet": "The cluster had no worker for 4 s of 10 s.",
    "few threads at first": "The cluster had 1 thread at first and 8 later, which cost about 5 s of 10 s.",
    "workers that come one by one": "The cluster had no worker for 1 s of 10 s, and 80 threads only later, which cost "
    "about 4.5 s more.",
    "lost work": "Work that was lost took 2 s of 10 s: 4 tasks while they ran, and 20 that ran again for their "
    "results; 1 worker left unexpectedly, with up to 95 % of the memory in use, and had tasks of 'load'.",
    "failed work": "Runs that failed or were cancelled took 3 s of 10 s: 4 tasks failed, 8 were tried again.",
}


@pytest.mark.parametrize("case", TEXTS)
def test_text(case):
    verdict = judge(CASES[case][0])
    assert verdict.findings[0].evidence.format(*verdict.findings[0].steps) == TEXTS[case]
    meaning = FINDINGS[verdict.findings[0].id]
    assert verdict.text == f"{TEXTS[case]} {meaning.remedy}: {meaning.link}"


def test_parts_of_one_cause_are_one_finding_of_the_largest_part():
    (finding,) = judge(CASES["tiny tasks"][0]).findings
    assert (finding.part, finding.seconds) == ("overhead", pytest.approx(7.0))


def test_a_cure_saves_no_more_than_the_critical_path_has():
    path = OnPath(data=2.0, thread=4.0)
    waits = group(cpu=10.0, noncpu=30.0, critical=path)
    (gil,) = judge(run({"noncpu": 0.75}, waits, cluster=PYTHON)).findings
    assert (gil.seconds, gil.at_most) == (pytest.approx(7.5), pytest.approx(6.0 * 30 / 40))
    # A prefix that two groups have has no fine metrics of its own: those of the run stand for them.
    (gil,) = judge(run({"noncpu": 0.75}, replace(waits, cpu=None), cluster=PYTHON)).findings
    assert gil.at_most == pytest.approx(6.0 * 0.75)
    (skew,) = judge(run({"tail": 0.5}, group(p50=0.2, longest=6.0, critical=OnPath(1.0, 2.0)))).findings
    assert (skew.seconds, skew.at_most) == (pytest.approx(5.0), pytest.approx(3.0))
    (restricted,) = judge(CASES["restrictions"][0]).findings
    assert restricted.at_most == 4.0
    assert judge(CASES["sleep"][0]).findings[0].at_most == pytest.approx(9.9)  # the path does not say
    # More threads would have shared all the work.
    assert judge(CASES["few threads at first"][0]).findings[0].at_most == pytest.approx(5.0)


@pytest.mark.parametrize(("share", "ids"), [(0.099, []), (0.101, ["no_worker"])])
def test_what_costs_less_than_a_tenth_is_not_named(share, ids):
    assert [finding.id for finding in judge(run({"no_worker": share})).findings] == ids


def test_nothing_is_said_about_what_workers_have_not_delivered():
    facts = run({"handed": 0.6, "tail": 0.2}, group(p50=0.2, longest=6.0), cluster=PYTHON, metrics_complete=False)
    verdict = judge(facts)
    assert [finding.id for finding in verdict.findings] == ["skew"]
    assert verdict.withheld == "workers have not delivered all their metrics, so 60 % of the time cannot be judged"
    # What is missing is less than what is known.
    assert not judge(run({"handed": 0.11, "no_worker": 0.2}, metrics_complete=False)).withheld
    # What is known, and nothing explains, is more.
    less = judge(run({"noncpu": 0.6, "handed": 0.2}, metrics_complete=False))
    assert less.withheld == "nothing that is known explains 60 % of the time"
    # What has arrived is at least so much.
    most = judge(run({"noncpu": 0.6, "handed": 0.3}, cluster=PYTHON, metrics_complete=False))
    assert ([finding.id for finding in most.findings], most.withheld) == (["gil"], "")
    twice = judge(run({"noncpu": 0.6, "unaccounted": -0.2}, cluster=PYTHON))
    assert twice == Verdict(
        withheld="the workers' metrics have more seconds than their threads had, so 60 % of the time cannot be judged"
    )
    assert judge(run({"noncpu": 0.6, "unaccounted": -0.05}, cluster=PYTHON)).findings
    assert judge(run({"handed": 0.3})).withheld == "nothing that is known explains 30 % of the time"
    stolen = {**ONE_MACHINE, "process_cpu": 0.3, "process_tasks": 4.0, "machine_cpu": 0.3, "machine_busy": 2.0}
    assert judge(run({"noncpu": 0.6}, cluster=stolen)).withheld == (
        "nothing that is known explains 60 % of the time, in which other programs kept the machine busy"
    )
    assert judge(run({}, threads=0.0)).withheld == "the cluster had no thread while the run lasted"


NOT_KNOWN = (
    "nothing that is known explains 50 % of the time: perhaps tasks waited for a core; set "
    "distributed.admin.system-monitor.host-cpu to true on the workers, so that their cores are known"
)
SOME_UNKNOWN = {"machine_cpus": 16.0, "machine_tasks": 4.0, "machines_unknown": 0.5}
MANY_CORES = {"machine_cpus": 16.0, "machine_tasks": 4.0, "machines_unknown": 0.0, "process_cpu": 1.6}


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        (RELEASES, NOT_KNOWN),
        ({**RELEASES, **SOME_UNKNOWN}, NOT_KNOWN),
        # A limit of half a core.
        ({**PYTHON, "process_cpu": 0.5}, NOT_KNOWN),
        ({**PYTHON, **MANY_CORES, "machines_limited": 1.0}, "nothing that is known explains 50 % of the time"),
        # The machine of the scheduler has no limit.
        ({**PYTHON, **MANY_CORES, "machines_limited": 0.0}, "io"),
        ({**PYTHON, "process_cpu": 0.5, "worker_loop_delay": 0.0}, "io"),
    ],
)
def test_it_is_said_that_tasks_may_have_waited_for_a_core(cluster, expected):
    verdict = judge(run({"noncpu": 0.5}, cluster=cluster))
    assert (verdict.withheld or verdict.findings[0].id) == expected


def test_many_threads_on_a_core_use_little_of_it_each():
    cluster = {"process_cpu": 1.0, "process_threads": 24.0, "process_tasks": 24.0, "worker_loop_delay": 0.0}
    verdict = judge(run({"noncpu": 0.96}, cluster=cluster))
    assert (verdict.findings, "waited for a core" in verdict.withheld) == ((), True)


def test_a_small_finding_does_not_hide_a_large_part_that_nothing_explains():
    verdict = judge(run({"noncpu": 0.5, "no_worker": 0.2}, cluster=RELEASES))
    assert ([each.id for each in verdict.findings], verdict.withheld) == (["no_worker"], NOT_KNOWN)
    large = judge(run({"noncpu": 0.3, "no_worker": 0.5}, cluster=RELEASES))
    assert ([each.id for each in large.findings], large.withheld) == (["no_worker"], "")


def test_it_is_said_where_the_lock_may_be_something_else():
    lock = "Python's interpreter lock lets one thread run at a time"
    text = judge(run({"noncpu": 0.75}, cluster=PYTHON)).text
    assert f"either {lock}, or the worker may use only one core." in text
    for known in ({"gil_contention": 0.9}, {"machines_limited": 0.0}):
        assert f": {lock}." in judge(run({"noncpu": 0.75}, cluster={**PYTHON, **known})).text


def test_hints():
    def hints(parts, **more):
        return judge(run(parts, **more)).hints

    assert hints({}, failures=Failures(upstream_failed=1, retried=2)) == ("failed_tasks", "retried_tasks")
    assert hints({}, lasted=40.0, cluster={"memory_peak": 0.3}) == ("unused_memory",)
    assert hints({}, lasted=20.0, cluster={"memory_peak": 0.3}) == ()
    assert hints({}, lasted=40.0, cluster={"memory_peak": 0.8}) == ()
    assert hints({"client": 0.2}, cluster={"sent_bytes": 2**30, "sending": 1.0}) == ("large_results",)
    assert hints({}, cluster={"sent_bytes": 2**30, "sending": 1.0}) == ()
    assert hints({"client": 0.2}, cluster={"sent_bytes": 2**30, "sending": 1.0, "receiving": 0.9}) == ()
    assert set(HINTS) == {"failed_tasks", "retried_tasks", "unused_memory", "large_results"}


def test_the_privacy_settings_hide_names_of_tasks():
    verdict = judge(CASES["one task is longer than all others"][0])
    hidden = Redactor(Capture(keys=False, tags=False)).verdict(verdict)
    assert "etl / work" in verdict.text
    assert "etl" not in hidden.text
    assert "work" not in hidden.text
    assert re.sub(r"'span \w{8} / tasks \w{8}'", "'etl / work'", hidden.text) == verdict.text


def test_links_lead_to_dask():
    for meaning in FINDINGS.values():
        assert re.fullmatch(r"https://(docs|distributed)\.dask\.org/en/stable/[\w-]+\.html(#[\w-]+)?", meaning.link)
        assert not meaning.remedy.endswith(".")
        assert not meaning.meaning.endswith(".")


def test_quantities():
    assert [seconds(x) for x in (-1, 0.0012, 0.042, 0.5, 9.949, 12.3, 119.4, 119.6, 3569, 7500)] == [
        "0 ms", "1.2 ms", "42 ms", "0.5 s", "9.9 s", "12 s", "119 s", "2:00 min", "59:29 min", "2:05 h"
    ]  # fmt: skip
    assert [size(x) for x in (12, 1100, 5e4, 3.2 * 2**20, 2**30, 2**50)] == [
        "12 B", "1.1 KiB", "49 KiB", "3.2 MiB", "1.0 GiB", "1,024.0 TiB"
    ]  # fmt: skip
    assert [number(x) for x in (0.97, 1, 2, 2.5, 12_000)] == ["1.0", "1.0", "2", "2.5", "12,000"]
    assert percent(0.234) == "23 %"


# Any facts at all.

REAL = st.floats(-10, 1e6) | st.sampled_from([0.0, 1.0])
COUNT = st.integers(0, 10**6)


def known_or_not(cls, **given_):
    kinds = {"float | None": st.none() | REAL, "int | None": st.none() | COUNT, "float": REAL, "int": COUNT}
    return st.builds(cls, **{each.name: given_.get(each.name, kinds.get(each.type)) for each in fields(cls)})


TITLES = st.builds(Step, st.tuples(st.text("a'{}", max_size=4)), st.text("a'{}", max_size=4))
CRITICAL = st.none() | st.builds(OnPath, REAL, REAL)
GROUPS = known_or_not(GroupFacts, key=st.builds(GroupKey, st.text(), st.text()), title=TITLES, critical=CRITICAL)
DEPARTURES = st.lists(known_or_not(Departure, prefix=st.sampled_from(["", "a{"])), max_size=2).map(tuple)
FACTS = st.builds(
    RunFacts,
    st.builds(Waterfall, st.dictionaries(st.sampled_from(PARTS), REAL), REAL, REAL),
    st.none()
    | st.builds(
        CriticalPath,
        REAL,
        REAL,
        st.dictionaries(st.builds(GroupKey, st.text(), st.text()), st.builds(OnPath, REAL, REAL), max_size=3),
        st.dictionaries(st.sampled_from(GAPS), REAL),
    ),
    st.lists(GROUPS, max_size=4),
    st.booleans(),
    known_or_not(Failures),
    known_or_not(GraphFacts),
    known_or_not(ClusterEvidence, departures=DEPARTURES),
)


@given(FACTS)
def test_any_facts_have_a_verdict(facts):
    verdict = judge(facts)
    for finding in verdict.findings:
        assert 0 <= finding.at_most <= facts.waterfall.seconds
        assert 0 < finding.seconds <= facts.waterfall.seconds
        assert isfinite(finding.at_most)
        assert finding.part in PARTS
        assert finding.id in FINDINGS
        assert finding.remedy == FINDINGS[finding.id].advice
        assert not re.search(r"None|nan|inf\b", finding.evidence)
        assert finding.evidence.endswith(".")
        assert all(f"'{step}'" in finding.text for step in finding.steps)
    costs = [finding.seconds for finding in verdict.findings]
    assert costs == sorted(costs, reverse=True)
    assert len({finding.id for finding in verdict.findings}) == len(costs)
    assert {*verdict.hints} <= {*HINTS}
    assert not re.search(r"None|nan", verdict.withheld)


def test_the_page_says_which_thresholds_hold():
    page = (Path(__file__).parents[2] / "docs/verdicts.md").read_text(encoding="utf-8")
    text = " ".join(page.split())
    assert (
        f"at least {percent(WORTH)} of the duration; `io` and `oversubscribed` at least {percent(SHARE['io'])}" in text
    )
    assert f"`p2p` at least {percent(SHARE['p2p'])}" in text
    assert {*SHARE} == {"io", "oversubscribed", "p2p"}
    assert SHARE["io"] == SHARE["oversubscribed"]
    assert f"Runs of less than {LEAST_SECONDS:.0f} s and of fewer than {LEAST_TASKS} tasks" in text
    assert f"From {LONG_FOR_FEW:.0f} s on" in text
    assert f"more than {SKEWED:.0f} times as long" in text
    assert f"{LONG:.0f} times as long: `stragglers`" in text
    assert f"{percent(UNUSED)} of its memory, in a run of at least {LONG_RUN:.0f} s" in HINTS["unused_memory"]
    assert f"{size(LARGE_RESULTS)} of results" in HINTS["large_results"]
    assert {part for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for part in re.findall("`(.*?)`", row)} > {
        *RULES,
        "starting",
        "lost",
    }


def test_what_helps_has_room_beside_long_names():
    long = GroupFacts(GroupKey("span", "x"), Step(("tag " * 900,), "x"), 40, 40, 14.0, 0.1, 6.0)
    text = judge(run({"tail": 0.5}, long)).text
    assert "…" in text
    assert text.endswith(FINDINGS["skew"].advice)
    assert len(text) < 800

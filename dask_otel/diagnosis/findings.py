"""What a verdict can say: the ids of findings and hints, what they mean, and what helps."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FINDINGS", "HINTS", "Meaning"]


class Meaning(NamedTuple):
    """What a finding means."""

    meaning: str
    #: What helps, without a full stop, and the page of Dask's documentation about it.
    remedy: str
    link: str

    @property
    def advice(self) -> str:
        """What helps, as a sentence."""
        return f"{self.remedy}: {self.link}"


_DASK = "https://docs.dask.org/en/stable"
_DISTRIBUTED = "https://distributed.dask.org/en/stable"

#: By id.
FINDINGS = {
    "gil": Meaning(
        "tasks of one process wait for each other, because only one thread at a time may run Python code",
        "Use more worker processes with fewer threads each, or functions that release the lock",
        f"{_DISTRIBUTED}/efficiency.html#adjust-between-threads-and-processes",
    ),
    "io": Meaning(
        "tasks wait for something outside: a network, a disk, a GPU, another program, a lock, a sleep",
        "Read larger pieces from closer by, or, if cores are idle, give the workers more threads, so that other tasks "
        "run meanwhile",
        f"{_DASK}/best-practices.html#processes-threads-and-vm-sizes",
    ),
    "oversubscribed": Meaning(
        "more threads want to run than the machine has cores; libraries for linear algebra start threads of their own",
        "Start no more threads than there are cores, and set OMP_NUM_THREADS, MKL_NUM_THREADS and "
        "OPENBLAS_NUM_THREADS to 1",
        f"{_DASK}/array-best-practices.html#avoid-oversubscribing-threads",
    ),
    "tiny_tasks": Meaning(
        "tasks are so short that handing them out costs more than their work",
        "Make fewer and larger tasks: larger partitions or chunks, or several items to a task",
        f"{_DISTRIBUTED}/efficiency.html#use-larger-tasks",
    ),
    "transfers": Meaning(
        "threads wait while data moves between workers",
        "Reduce the data before steps that combine it, and give scattered or persisted data that many tasks use to all "
        "workers with client.replicate",
        f"{_DISTRIBUTED}/locality.html",
    ),
    "busy_worker": Meaning(
        "the event loop of the workers is late, so that tasks start late",
        "Don't hold the interpreter's lock for long in tasks, and don't compute in async tasks",
        f"{_DISTRIBUTED}/efficiency.html#adjust-between-threads-and-processes",
    ),
    "skew": Meaning(
        "one task of a group has far more data or takes far longer than the others",
        "Divide the data more evenly: repartition, or choose a key with more values, or with more even ones",
        f"{_DASK}/dataframe-best-practices.html#repartition-to-reduce-overhead",
    ),
    "stragglers": Meaning(
        "the last tasks are too few or too long, and all threads wait for them",
        "Make the tasks smaller, or submit the long ones first with a higher priority",
        f"{_DISTRIBUTED}/priority.html",
    ),
    "narrow_graph": Meaning(
        "the graph has too few tasks at a time for the threads: a chain, or a step of few tasks",
        "Divide the work into more partitions or chunks, submit more of it at a time, or use a smaller cluster",
        f"{_DASK}/best-practices.html",
    ),
    "large_graph": Meaning(
        "the graph is so large that sending it and taking it in keeps the threads waiting",
        "Make fewer tasks with larger chunks, and don't put large objects into the graph",
        f"{_DASK}/best-practices.html#avoid-very-large-graphs",
    ),
    "spilling": Meaning(
        "workers move data between memory and disk, or are paused until they have",
        "Give the workers more memory, or use smaller chunks and keep fewer results",
        f"{_DISTRIBUTED}/worker-memory.html",
    ),
    "unmanaged_memory": Meaning(
        "workers are paused by memory that Dask does not manage",
        "Look for memory that tasks keep or that is not given back to the system, and give tasks more room",
        f"{_DISTRIBUTED}/worker-memory.html#memory-not-released-back-to-the-os",
    ),
    "scheduler_bound": Meaning(
        "the scheduler is too busy to hand out tasks in time",
        "Make fewer tasks, and give the scheduler a core of its own",
        f"{_DISTRIBUTED}/limitations.html",
    ),
    "lost_work": Meaning(
        "workers left, and work that was done or half done was done again",
        "Find out why the workers died; if it was for lack of memory, give them more memory or fewer threads",
        f"{_DISTRIBUTED}/killed.html",
    ),
    "no_worker": Meaning(
        "tasks wait for a worker that meets their resources or restrictions, while others are idle",
        "Start workers with the resources that the tasks ask for, or ask for less",
        f"{_DISTRIBUTED}/resources.html",
    ),
    "late_workers": Meaning(
        "workers came when the run had begun",
        "Start the workers before the work, wait with client.wait_for_workers, or keep a minimum of them",
        f"{_DASK}/adaptive.html",
    ),
    "imbalance": Meaning(
        "some workers have more tasks than threads while others have none",
        "Check which tasks are bound to workers or data, and that work stealing is on",
        f"{_DISTRIBUTED}/work-stealing.html",
    ),
    "failed_work": Meaning(
        "runs that failed or were cancelled took much of the time",
        "Look at the first failure; let tasks fail early, because retries repeat the whole task",
        f"{_DISTRIBUTED}/resilience.html",
    ),
    "p2p": Meaning(
        "a shuffle moves data between all workers",
        "Shuffle less: filter and select columns before, use an index, or join with a small table",
        f"{_DASK}/dataframe-best-practices.html#avoid-full-data-shuffling",
    ),
}

#: What else can be noticed, by id. A hint is no reason for a run to be slow.
HINTS = {
    "failed_tasks": "tasks failed",
    "retried_tasks": "tasks failed and were tried again",
    "unused_memory": "no worker has used as much as 70 % of its memory, in a run of at least 30 s",
    "large_results": "the program took its time between graphs, and fetched at least 100 MiB of results",
}

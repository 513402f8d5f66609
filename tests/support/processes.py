"""Real Dask processes: `dask scheduler` and `dask worker`, as a person starts them."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from distributed import Client

from support.environment import environment

PATIENCE = 60.0
LOOPBACK = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
FAST = {
    "DASK_OTEL__TRACES__IDLE_TIMEOUT": "500ms",
    "DASK_OTEL__SWEEP_INTERVAL": "100ms",
    "DASK_LOGGING__DISTRIBUTED": "info",
}
#: Where an entry of a log begins. A traceback is an entry of its own: the line before it may be about something else.
_ENTRY = re.compile(r"^(?=\d{4}-\d\d-\d\d |Traceback )", re.MULTILINE)
_ERROR = re.compile(r"Traceback |.* - (?:ERROR|CRITICAL) - ")
#: In each line that dask-otel logs, each warning that it gives and each traceback through its code.
OURS = re.compile(r"dask_otel|dask-otel[ :]")


def our_errors(log: str) -> list[str]:
    """Return the errors in a log of Dask's that dask-otel has logged, and the tracebacks with a line of its code.

    Dask logs others on a busy machine, e.g. the traceback of a connection that was closed while it was sending.
    """
    return [entry for entry in _ENTRY.split(log) if _ERROR.match(entry) and "dask_otel" in entry]


class Process:
    """A process and what it logs.

    Parameters
    ----------
    before
        A command that starts another one, such as ``nice``.
    python
        Interpreter of another environment, as ``support.virtual_envs`` makes them. It imports only what is in there.
    """

    def __init__(
        self,
        *arguments: str,
        folder: Path,
        env: Mapping[str, str] | None = None,
        module: str = "dask",
        before: Sequence[str] = (),
        python: str = "",
    ) -> None:
        self._process = subprocess.Popen(
            [*before, python or sys.executable, "-m", module, *arguments],
            cwd=folder,
            env=environment(FAST, env or {}) | ({"PYTHONPATH": ""} if python else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []
        self._logged = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        return "".join(self._lines)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, pattern: str, patience: float = PATIENCE) -> re.Match[str]:
        """Wait until the log has a match, and return it."""
        with self._logged:
            assert self._logged.wait_for(lambda: re.search(pattern, self.log) or self._ended, patience), self.log
            match = re.search(pattern, self.log)
            assert match, self.log
            return match

    def stop(self) -> None:
        self._process.terminate()
        self.join()

    def stop_or_kill(self) -> None:
        """Stop a process whose end is not what a test is about."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE / 4)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.join()

    def send(self, signal: int) -> None:
        self._process.send_signal(signal)

    def kill(self) -> None:
        self._process.kill()
        self.join()

    def join(self, patience: float = PATIENCE) -> int:
        code = self._process.wait(patience)
        if self._process.stdout.closed:
            return code
        self._reader.join(PATIENCE)
        self._process.stdout.close()
        return code

    def _read(self) -> None:
        for line in self._process.stdout:
            with self._logged:
                self._lines.append(line)
                self._logged.notify_all()
        with self._logged:
            self._ended = True
            self._logged.notify_all()


class Processes:
    """A scheduler, its workers, and a client."""

    def __init__(self, scheduler: Process, workers: list[Process], address: str, client: Client) -> None:
        self.scheduler = scheduler
        self.workers = workers
        self.address = address
        self.client = client


@contextmanager
def cluster(
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    options: Sequence[str] = ("--preload", "dask_otel"),
    workers: int = 2,
    nanny: bool = False,
    **client: Any,
) -> Iterator[Processes]:
    """Start `dask scheduler` with the preload and some `dask worker`, each a command of its own.

    Workers have no nanny, which would be two more processes to start, unless it matters.
    """
    nannies = () if nanny else ("--no-nanny",)
    with ExitStack() as stack:
        scheduler = Process("scheduler", *LOOPBACK, "--port", "0", *options, folder=folder, env=env)
        stack.callback(scheduler.stop)
        address = scheduler.wait_for(r"Scheduler at:\s+(tcp://\S+)")[1]
        started = []
        for number in range(workers):
            worker = Process(
                "worker", address, "--nthreads", "2", "--name", f"w{number}", *nannies, *LOOPBACK, folder=folder
            )
            # A worker that gets SIGTERM while the scheduler closes it has been seen to stay alive.
            stack.callback(worker.stop_or_kill)
            started.append(worker)
        connected = stack.enter_context(Client(address, **client))
        if workers:
            connected.wait_for_workers(workers)
        yield Processes(scheduler, started, address, connected)

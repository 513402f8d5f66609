"""A scheduler, one worker and a client, as people start them; for programs that measure a live scheduler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager

from distributed import Client

__all__ = ["cluster"]


@contextmanager
def cluster(*options, **variables):
    """Start them; return the scheduler's process id and the client.

    Parameters
    ----------
    options
        Of ``dask scheduler``.
    variables
        Of the environment of both processes.
    """
    env = os.environ | {"PYTHONHASHSEED": "0"} | variables
    loopback = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:

        def start(*arguments):
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments, *loopback],
                cwd=folder,
                env=env,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        def drain(process):  # a full pipe would stop it
            threading.Thread(target=process.stderr.read, daemon=True).start()

        scheduler = start("scheduler", "--port", "0", *options)
        for line in scheduler.stderr:
            if match := re.search(r"Scheduler at:\s+(tcp://\S+)", line):
                break
        drain(scheduler)
        drain(start("worker", match[1], "--nthreads", "2", "--no-nanny"))
        client = stack.enter_context(Client(match[1]))
        client.wait_for_workers(1)
        yield scheduler.pid, client

"""The command ``dask-otel``."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

__all__ = ["main", "refuse"]


def refuse(reason: str) -> NoReturn:
    """End a command that cannot begin, with 2: of ``dask-otel diff``, 1 means that runs are slower."""
    sys.stderr.write(f"{reason}\n")
    sys.exit(2)


def main() -> None:
    """Run the command line; what it needs beyond the bridge is the extra ``cli``."""
    # gRPC's core reads this once, when it is loaded, and writes to stderr otherwise; errors are in the results, too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from .main import dask_otel
    except ImportError as error:
        refuse(f"dask-otel's command line needs {error.name}: pip install 'dask-otel[cli]', in a checkout '.[cli]'")
    except KeyboardInterrupt:
        sys.exit(130)
    dask_otel()

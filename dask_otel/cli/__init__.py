"""The command ``dask-otel``."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; what it needs beyond the bridge is the extra ``cli``."""
    # gRPC's core reads this once, when it is loaded, and writes to stderr otherwise; errors are in the results, too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from .main import dask_otel
    except ImportError as error:
        sys.exit(f"dask-otel's command line needs {error.name}: pip install 'dask-otel[cli]', in a checkout '.[cli]'")
    except KeyboardInterrupt:
        sys.exit(130)
    dask_otel()

"""The command ``dask-otel``."""

from __future__ import annotations

import os
import sys

from .. import config
from ..errors import SettingError

__all__ = ["main"]


def main() -> None:
    """Run the command line; what it needs beyond the bridge is the extra ``cli``."""
    # gRPC's core reads this once, when it is loaded, and writes to stderr otherwise; errors are in the results, too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        config.check_limits()  # the SDK fails without a name when it is imported
        from .main import dask_otel
    except SettingError as error:
        sys.exit(str(error))
    except ImportError as error:
        sys.exit(f"dask-otel's command line needs {error.name}: pip install 'dask-otel[cli]', in a checkout '.[cli]'")
    dask_otel()

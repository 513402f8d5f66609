"""The command ``dask-otel``."""

from __future__ import annotations

import sys

from .. import config
from ..errors import SettingError

__all__ = ["main"]


def main() -> None:
    """Run the command line; what it needs beyond the bridge is the extra ``cli``."""
    try:
        config.check_limits()  # the SDK fails without a name when it is imported
        from .main import dask_otel
    except SettingError as error:
        sys.exit(str(error))
    except ImportError as error:
        sys.exit(f"dask-otel's command line needs {error.name}: pip install 'dask-otel[cli]', in a checkout '.[cli]'")
    except KeyboardInterrupt:  # the imports take seconds
        sys.exit(130)
    dask_otel()

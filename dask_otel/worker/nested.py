"""What a task submits carries the context of the task on, and is below the task's span.

Dask itself puts it into the Dask span in which the task was requested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..client.submitting import NOTHING, Addition
from ..messages import ANNOTATION, OF_ONE_TASK, PARENT_FIELD
from .task_span import current_run

__all__ = ["carried_on"]


def carried_on(client: Any, opened: Mapping[str, Any]) -> Addition:
    """Return what to add to a submission of a task; nothing outside of tasks. Makes no span."""
    run = current_run()
    if run is None:
        return NOTHING
    carrier = {name: value for name, value in run.carrier if name not in OF_ONE_TASK}
    if run.own is not None:
        carrier[PARENT_FIELD] = f"00-{run.own.trace_id:032x}-{run.own.span_id:016x}-01"
    return Addition({ANNOTATION: carrier}) if carrier else NOTHING

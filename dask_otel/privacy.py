"""Removes from a record what the settings ``otel.capture.*`` exclude, or puts pseudonyms in its place."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, replace
from hashlib import blake2b
from secrets import token_bytes
from typing import Any, TypeVar
from uuid import UUID

from .diagnosis.parts import CriticalPath, GroupKey, Step
from .diagnosis.verdict import Verdict
from .identity import client_names
from .schema import ERROR_TYPE, SPAN_ROOT, TASK_PREFIX
from .spantree.counts import FirstError
from .spantree.events import SpanInfo, TaskError, TaskRun
from .spantree.records import (
    ENDS,
    Failure,
    GroupRecord,
    PendingRecord,
    Record,
    SegmentRecord,
    StandInRecord,
    TaskRecord,
)

__all__ = ["Capture", "Redactor"]

#: Exceptions whose names are shown always.
_BUILT_IN_ERRORS = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
} | {"_OTHER", "KilledWorker", "CancelledError", "TimeoutError"}

#: Without a secret, pseudonyms of names that are easy to guess could be found by trying.
_SECRET = token_bytes(32)

Error = TypeVar("Error", Failure, FirstError, TaskError)


@dataclass(frozen=True)
class Capture:
    """What may be sent and shown."""

    #: Messages of exceptions.
    message: bool = True
    traceback: bool = True
    #: Keys of tasks, and names of groups and prefixes, which are parts of them.
    keys: bool = True
    #: Tags of spans.
    tags: bool = True
    #: File and line of the code that submitted the work.
    code: bool = True
    #: Names of types of results and collections, and of exceptions that are not Python's own.
    types: bool = True
    #: Names of clients, and their ids, which contain them; services, users and hosts that submit.
    clients: bool = True


class Redactor:
    """Removes what must not be shown, or puts pseudonyms in its place.

    Parameters
    ----------
    scheduler
        Id of the scheduler. A name has the same pseudonym as long as the scheduler lives, also if the plugin is
        registered again.
    """

    def __init__(self, capture: Capture, scheduler: str = "") -> None:
        self.capture = capture
        self._salt = blake2b(scheduler.encode("utf-8", "surrogatepass"), digest_size=16, key=_SECRET).digest()

    def __call__(self, record: Record) -> Record:
        """Return a record without what must not be shown; the same record if everything may be shown."""
        if self.capture == Capture():
            return record
        changes: dict[str, Any] = {
            "span": replace(record.span, tags=self.tags(record.span.tags)),
            "failure": self.failure(record.failure),
        }
        if isinstance(record, SegmentRecord):
            changes |= {
                "name": self.title(record.span, record.name),
                "code": record.code if self.capture.code else None,
                "collections": record.collections if self.capture.types else (),
                "clients": self.clients(record.clients),
                "submitters": record.submitters if self.capture.clients else {},
                "critical": record.critical and self._critical_path(record.critical),
                "verdict": record.verdict and self.verdict(record.verdict),
            }
        elif isinstance(record, GroupRecord):
            changes["types"] = record.types if self.capture.types else {}
            changes["dependencies"] = tuple(map(self.key, record.dependencies))
            if record.retried_error:
                changes["retried_error"] = self._error(record.retried_error)
            if not record.folded:  # else the name is "other groups"
                changes |= {"name": self.key(record.name), "group": self.key(record.group)}
        elif isinstance(record, TaskRecord):
            changes |= {"name": self.key(record.name), "run": self._run(record.run)}
        elif isinstance(record, StandInRecord):
            changes |= {"name": self.key(record.name), "group": self.key(record.group)}
        elif isinstance(record, PendingRecord):
            changes["name"] = f"{self.tags(record.span.tags)[-1]} (running)"
            changes["active"] = tuple(map(self.tags, record.active))
        return replace(record, **changes)

    def tags(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """Return a span's tags, or pseudonyms for them."""
        if self.capture.tags or tags == ("default",):
            return tags
        return tuple(self._pseudonym("span", tag) for tag in tags)

    def title(self, span: SpanInfo, name: str) -> str:
        """Return the name of a span's segments, or a pseudonym; that of a default root is ``default: <prefix>``."""
        if span.is_default:
            return name if self.capture.keys else "default"
        return self.tags(span.tags)[-1]

    def clients(self, ids: tuple[str, ...]) -> tuple[str, ...]:
        """Return ids of clients, or pseudonyms in the same form, with a pseudonym for the name if there is one."""
        if self.capture.clients:
            return ids
        pseudonyms = []
        for id_ in ids:
            names = [self._pseudonym("client", name) for name in client_names([id_])]
            # Dask's UUIDs contain an address of the network card of the client's machine.
            unique = UUID(bytes=self._digest(id_, 16))
            pseudonyms.append("-".join(["Client", *names, str(unique)]))
        return tuple(pseudonyms)

    def metric_attribute(self, name: str, value: str) -> str:
        """Return the value of a metric's attribute, or a pseudonym."""
        if name == SPAN_ROOT:
            return self.tags((value,))[0]
        if name == TASK_PREFIX:
            return self.key(value)
        return self._error_type(value) if name == ERROR_TYPE else value

    def verdict(self, verdict: Verdict) -> Verdict:
        """Return a verdict with pseudonyms for the steps that it names."""
        findings = (replace(each, steps=tuple(map(self._step, each.steps))) for each in verdict.findings)
        return replace(verdict, findings=tuple(findings))

    def _critical_path(self, path: CriticalPath) -> CriticalPath:
        keys = {key: GroupKey(key.span_id, self.key(key.name)) for key in path.groups}
        groups = {keys[key]: seconds for key, seconds in path.groups.items()}
        titles = {keys[key]: self._step(step) for key, step in path.titles.items() if key in keys}
        return replace(path, groups=groups, titles=titles)

    def _step(self, step: Step) -> Step:
        return Step(self.tags(step.tags), self.key(step.prefix) if step.prefix else "")

    def _run(self, run: TaskRun) -> TaskRun:
        return run._replace(
            key=self.key(run.key),
            group=self.key(run.group),
            prefix=self.key(run.prefix),
            type=run.type if self.capture.types else None,
            error=run.error and self.task_error(run.error),
        )

    def failure(self, failure: Failure | None) -> Failure | None:
        """Return a failure without what must not be shown."""
        return failure and self._error(failure)

    def task_error(self, error: TaskError) -> TaskError:
        """Return the exception of a task without what must not be shown."""
        return self._error(error)._replace(traceback=error.traceback if self.capture.traceback else "")

    def _error(self, error: Error) -> Error:
        message = error.message if self.capture.message else ""
        return error._replace(type=self._error_type(error.type), message=message)

    def _error_type(self, name: str) -> str:
        return name if self.capture.types or name in _BUILT_IN_ERRORS or name in ENDS else "_OTHER"

    def key(self, name: str) -> str:
        """Return a key, or a name that is part of one, or a pseudonym."""
        return name if self.capture.keys else self._pseudonym("tasks", name)

    def _pseudonym(self, kind: str, name: str) -> str:
        return f"{kind} {self._digest(name, 4).hex()}"

    def _digest(self, name: str, size: int) -> bytes:
        return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=size, key=self._salt).digest()

"""What a collector's answer means for the batch that was sent, by the OTLP specification and by what collectors do."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from enum import Enum
from time import time

__all__ = ["LONGEST_WAIT", "Answer", "Meaning", "of_grpc", "of_http", "retry_after", "short"]

#: Seconds that a collector may ask for at most.
LONGEST_WAIT = 300.0
#: Characters kept of what a collector says.
MAX_SAID = 300


class Meaning(Enum):
    """What to do with a batch."""

    #: It has arrived.
    SENT = "sent"
    #: Send it again later: the collector is away or overloaded.
    LATER = "later"
    #: The collector seems to take nothing until somebody changes something: a wrong path, no permission, a bug.
    REFUSED = "refused"
    #: It is too large; its halves may not be.
    TOO_LARGE = "too large"
    #: Something in it is invalid; one of its halves may not be.
    INVALID = "invalid"


@dataclass(frozen=True)
class Answer:
    """What a collector, or the way there, said of one request."""

    meaning: Meaning
    #: For a person, e.g. ``HTTP 503 Service Unavailable: overloaded``; empty if there is nothing to say.
    said: str = ""
    #: Seconds that the collector asks to wait.
    wait: float | None = None
    #: Spans of a batch, or points of metrics, that was taken which the collector rejected all the same.
    rejected: int = 0
    #: False if nobody was there to answer: no connection could be made, or it was lost.
    was_reached: bool = True

    @property
    def knows_no_such_thing(self) -> bool:
        """Whether the server has no place for this kind of data: a backend for traces asked to take metrics."""
        return self.meaning is Meaning.REFUSED and self.said.startswith(("UNIMPLEMENTED", "HTTP 404"))


_HTTP = {
    400: Meaning.INVALID,
    408: Meaning.LATER,
    413: Meaning.TOO_LARGE,
    422: Meaning.INVALID,
    425: Meaning.LATER,
    429: Meaning.LATER,
    502: Meaning.LATER,
    503: Meaning.LATER,
    504: Meaning.LATER,
}
_GRPC = {
    "CANCELLED": Meaning.LATER,
    "DEADLINE_EXCEEDED": Meaning.LATER,
    "ABORTED": Meaning.LATER,
    "OUT_OF_RANGE": Meaning.LATER,
    "UNAVAILABLE": Meaning.LATER,
    "DATA_LOSS": Meaning.LATER,
    "RESOURCE_EXHAUSTED": Meaning.LATER,
    "INVALID_ARGUMENT": Meaning.INVALID,
}
#: How servers say that a message is too large, though they use the status for overload. Not "size": rate limits speak
#: of sizes too.
_TOO_LARGE = re.compile(r"larger than max|too large|exceeds? (the )?max\w* (message|size|request)", re.IGNORECASE)


def of_http(status: int, reason: str, headers: Mapping[str, str], body: str) -> Answer:
    """Read the answer to a request over HTTP that did not succeed, or that no OTLP receiver would give."""
    html = "html" in headers.get("Content-Type", "").lower()
    detail = "a web page" if html else short(body)
    said = f"HTTP {status} {short(reason)}".rstrip() + (f": {detail}" if detail else "")
    if 200 <= status < 300:  # whoever sends web pages has not taken spans
        return Answer(Meaning.REFUSED if html else Meaning.SENT, said if html else "")
    return Answer(_HTTP.get(status, Meaning.REFUSED), said, retry_after(headers.get("Retry-After")))


def of_grpc(code: str, details: str, wait: float | None) -> Answer:
    """Read the answer to a call over gRPC that failed.

    Parameters
    ----------
    code
        Name of the status.
    wait
        Seconds, from a ``RetryInfo``.
    """
    meaning = _GRPC.get(code, Meaning.REFUSED)
    if code == "RESOURCE_EXHAUSTED" and wait is None and _TOO_LARGE.search(details):
        meaning = Meaning.TOO_LARGE
    if wait is not None:
        wait = min(max(0.0, wait), LONGEST_WAIT)
    return Answer(meaning, f"{code}: {short(details)}", wait)


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by an HTTP header ``Retry-After``, a number or a date; None if it says neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            # HTTP's dates are in GMT, whether they say so or not.
            seconds = date.replace(tzinfo=date.tzinfo or timezone.utc).timestamp() - time()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), LONGEST_WAIT) if math.isfinite(seconds) else None


def short(text: str) -> str:
    """Return what somebody else says as one line of printable text, not too long."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_SAID]).split())[:MAX_SAID]

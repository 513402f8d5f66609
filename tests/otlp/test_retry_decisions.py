"""What answers mean."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_otel.otlp.transport import LONGEST_WAIT, RetryDecision, grpc_result, http_result, retry_after


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0.0), ("1.5", 1.5), ("-3", 0.0), ("999999", LONGEST_WAIT), ("nan", None), ("inf", None), ("soon", None)],
)
def test_retry_after(value, seconds):
    assert retry_after(value) == seconds
    assert retry_after(None) is None


def test_retry_after_a_date():
    later = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    assert 50 < retry_after(later) <= 60
    assert retry_after("Tue, 24 Nov 2020 10:00:00 GMT") == 0.0


@given(st.text())
def test_any_header_and_any_text_give_an_answer(text):
    retry_after(text)
    assert "\n" not in http_result(503, text, {"Retry-After": text}, text).message.removeprefix(f"HTTP 503 {text}")
    assert grpc_result("UNAVAILABLE", text, None).decision is RetryDecision.LATER


@given(st.integers(100, 599))
def test_only_success_is_success(status):
    decision = http_result(status, "", {}, "").decision
    assert (decision is RetryDecision.SENT) == (200 <= status < 300)


@pytest.mark.parametrize(
    ("details", "wait", "decision"),
    [
        ("Received message larger than max (6291456 vs. 4194304)", None, RetryDecision.TOO_LARGE),
        (
            "grpc: received message after decompression larger than max (6291456 vs. 4194304)",
            None,
            RetryDecision.TOO_LARGE,
        ),
        ("RATE_LIMITED: ingestion rate limit (15000000 bytes) exceeded", None, RetryDecision.LATER),
        ("Received message larger than max", 3.0, RetryDecision.LATER),  # it says when to come again
    ],
)
def test_resource_exhausted_means_two_things(details, wait, decision):
    assert grpc_result("RESOURCE_EXHAUSTED", details, wait).decision is decision

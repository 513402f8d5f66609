"""Endpoints are shown without secrets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_otel.otlp.environment import shown


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://collector:4317", "http://collector:4317"),
        ("https://[::1]:4318/v1/traces", "https://[::1]:4318/v1/traces"),
        ("collector:4317", "collector:4317"),
        ("unix:/run/otel.sock", "unix:/run/otel.sock"),
        ("https://u:secret@h:4318/x?next=http://y", "https://h:4318/x"),
        ("https://u:secret@h#fragment", "https://h"),
        ("u:secret@host:4317", "host:4317"),
        ("https://h:4318/p@th", "https://h:4318"),
        ("https://u:sec?ret@h", "https://…"),
        ("https://u:se://cret@h", "https://…"),
        ("https://u:sec/ret@h", "https://…"),
    ],
)
def test_shown(endpoint, expected):
    assert shown(endpoint) == expected


@given(st.text("ab:/?#[]", max_size=8), st.text("ab:/?#@[]", max_size=8))
def test_a_password_is_never_shown(before, after):
    assert "SECRET" not in shown(f"http://user:{before}SECRET{after}@host:4318/path")

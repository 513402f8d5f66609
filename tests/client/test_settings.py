from __future__ import annotations

import logging

import dask
import pytest

from dask_otel.client import settings as module
from dask_otel.client.settings import ClientSettings, client_settings
from dask_otel.privacy import Capture


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(module, "_latest", None)
    monkeypatch.setattr(module, "_reported", set())
    module._known.clear()


@pytest.fixture
def logged(caplog):
    log = logging.getLogger("distributed.dask_otel")
    log.addHandler(caplog.handler)
    yield caplog
    log.removeHandler(caplog.handler)


def test_defaults():
    expected = ClientSettings("parent", link_after=43_200.0, phase_threshold=0.05, says_user=False, capture=Capture())
    assert client_settings() == expected


def test_each_change_applies_at_once():
    with dask.config.set({"otel.client.context": "link"}):
        assert client_settings().context == "link"
        with dask.config.set({"otel.client.context": "NONE", "otel.capture.user": "yes"}):
            assert (client_settings().context, client_settings().says_user) == ("none", True)
        assert (client_settings().context, client_settings().says_user) == ("link", False)
    assert client_settings().context == "parent"
    with dask.config.set({"otel.capture.message": False}):
        assert client_settings().capture == Capture(message=False)


def test_what_hides_all_hides_the_user():
    with dask.config.set({"otel.capture.user": True, "otel.capture.keys": "perhaps"}):
        assert not client_settings().says_user


def test_settings_are_read_once(monkeypatch):
    client_settings()
    monkeypatch.setattr(module.config, "load", None)
    for _ in range(3):
        client_settings()
    with dask.config.set({"otel.client.context": "link"}), pytest.raises(TypeError):
        client_settings()


def test_a_value_that_cannot_be_used_has_its_default_and_is_logged_once(logged):
    for other in range(40):  # more than are remembered
        with dask.config.set({"otel.client.context": "pareil", "otel.client.link-after": other + 1}):
            assert client_settings() == ClientSettings("parent", other + 1.0, 0.05, says_user=False, capture=Capture())
    (line,) = set(logged.messages)
    assert "otel.client.context" in line
    assert "parent, link, none" in line


@pytest.mark.parametrize("given", [None, "off", 7, {"client": None}, {"client": "none"}, {"client": {"context": []}}])
def test_anything_may_be_written(given):
    with dask.config.set(otel=given):
        assert client_settings().context == "parent"


class Fails(logging.Handler):
    """A handler that raises, and that asks for the settings as filters of log records do."""

    def emit(self, record):
        client_settings()
        raise RuntimeError("the pipeline is down")


def test_a_log_that_fails():
    log, handler = logging.getLogger("distributed.dask_otel"), Fails()
    log.addHandler(handler)
    try:
        for number in range(module.MAX_REPORTED + 10):
            with dask.config.set({"otel.client.context": f"odd {number}"}):
                assert client_settings().context == "parent"
    finally:
        log.removeHandler(handler)
    assert len(module._reported) == module.MAX_REPORTED

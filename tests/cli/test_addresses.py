"""``dask-otel doctor --scheduler``, of addresses where no scheduler answers."""

from __future__ import annotations

import gc
import re
import warnings

import dask
import pytest
from distributed import LocalCluster
from distributed.security import Security

#: Attempts to connect that Dask gives up leave their sockets open.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
LOCAL = {"n_workers": 0, "processes": False, "dashboard_address": "127.0.0.1:0", "protocol": "tcp"}


@pytest.fixture(scope="module")
def _only_what_is_new_is_collected():
    """Looking through all that the tests have imported takes longer than most of them."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _collect_what_dask_leaves_open(_only_what_is_new_is_collected):
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("", "--scheduler needs the address of a scheduler, e.g. tcp://scheduler:8786"),
        ("tcp://", "needs the address of a scheduler"),
        ("http://host:8787/status", "is a web address, such as the dashboard's: .* usually tcp://host:8786"),
        ("HTTPS://user:secret@host/x", "is a web address, .* usually tcp://host:8786"),
        ("gateway://1.2.3.4:443/dask.abc", "dask-gateway's own client only: open /otel/"),
        ("inproc://10.0.0.1/1/2", "from its own process only: make the cluster with protocol='tcp'"),
        ("ucx://host:8786", "needs the package distributed-ucxx, here too"),
        ("ucxx://host:8786", "needs the package distributed-ucxx, here too"),
        ("foo://host:8786", "scheme that Dask does not know here .*: give an address like tcp://scheduler:8786"),
        ("host", "no address with a host and a port: give the scheduler's, e.g. tcp://host:8786"),
        ("tcp://host", "no address with a host and a port: .* tcp://host:8786"),
        ("tcp://host:port", "no address with a host and a port: .* tcp://host:8786"),
        ("tcp://host:123456", "no address with a host and a port: .* tcp://host:8786"),
        ("tcp:/host:8786", "no address with a host and a port: .* tcp://scheduler:8786"),
        ("tls://host", "no address with a host and a port: .* tls://host:8786"),
        (":8786", "no address with a host and a port: .* tcp://scheduler:8786"),
        ("8786", "no address with a host and a port: .* tcp://scheduler:8786"),
        ("scheduler.json", "no address with a host and a port"),
        ("tls://host:8786", "needs TLS, which is not configured here: set .*DASK_DISTRIBUTED__COMM__TLS__CA_FILE"),
        ("wss://host:8786", "needs TLS, which is not configured here"),
        ("127.0.0.1:1", "no scheduler answers at .*; nothing listens there; give the address that workers use"),
        ("tcp://127.0.0.1:1", "nothing listens there"),
        ("localhost:1", "nothing listens there"),
        ("[::1]:1", "nothing listens there"),
        ("ws://127.0.0.1:1", "nothing listens there"),
        ("tcp://no-such-host.invalid:8786", "'no-such-host.invalid' has no address here"),
    ],
)
def test_an_address_that_is_none(ask, monkeypatch, address, line):
    monkeypatch.setattr("dask_otel.cli.doctor.PATIENCE", 2.0)
    code, (said,) = ask(address)
    assert code == 1
    assert re.search(line, said), said
    assert "secret" not in said


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("dask_otel.cli.doctor.PATIENCE", 4.0)


@pytest.mark.slow
def test_the_dashboard_s_port(ask, quick):
    with LocalCluster(**LOCAL) as cluster:
        port = cluster.scheduler.http_server.port
        _, (said,) = ask(f"tcp://127.0.0.1:{port}")
    assert "a web server that listens there, perhaps the dashboard's: give the scheduler's own port" in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_another_protocol(ask, quick):
    with LocalCluster(**LOCAL) as cluster:
        address = cluster.scheduler_address
        _, (said,) = ask(address.replace("tcp", "ws"))
    assert said.endswith(f"the scheduler there does not use ws: give {address}")
    gc.collect()  # a websocket that Dask gives up on leaves its socket open


@pytest.fixture(scope="module")
def tls_cluster():
    with LocalCluster(**LOCAL | {"protocol": "tls"}, security=Security.temporary()) as cluster:
        yield cluster


def test_tls_that_was_not_asked_for(ask, quick, tls_cluster):
    _, (said,) = ask(tls_cluster.scheduler_address.replace("tls", "tcp"))
    assert said.endswith(f"it hangs up: if the cluster uses TLS, give {tls_cluster.scheduler_address}")


def _files(security, folder):
    """Dask's settings for the certificates that a temporary `Security` keeps in memory."""
    files = {
        "ca-file": security.tls_ca_file,
        "client.cert": security.tls_client_cert,
        "client.key": security.tls_client_key,
    }
    settings = {}
    for name, content in files.items():
        (folder / name).write_text(content)
        settings[f"distributed.comm.tls.{name}"] = str(folder / name)
    return settings


def test_certificates(ask, quick, tls_cluster, tmp_path):
    address = tls_cluster.scheduler_address
    with dask.config.set(_files(tls_cluster.security, tmp_path)):
        _, out = ask(address)
        assert out == [
            f"✗ the scheduler at {address} runs without dask-otel: nothing there asks for it: start it with "
            "--preload dask_otel, or with DASK_DISTRIBUTED__SCHEDULER__PRELOAD=dask_otel"
        ]
        with LocalCluster(**LOCAL) as plain:
            _, (said,) = ask(plain.scheduler_address.replace("tcp", "tls"))
            assert said.endswith(f"the scheduler there does not use tls: give {plain.scheduler_address}")
    with dask.config.set(_files(Security.temporary(), tmp_path)):
        _, (said,) = ask(address)
        assert said.endswith("the certificates here are not those of this cluster: see distributed.comm.tls")
    with dask.config.set(dict.fromkeys(_files(tls_cluster.security, tmp_path), "/no/file")):
        _, (said,) = ask(address)
        assert said.startswith("Error: the TLS configuration here cannot be used (")


def test_blanks_and_a_slash_do_not_matter(ask):
    with LocalCluster(**LOCAL) as cluster:
        _, (said,) = ask(f" {cluster.scheduler_address}/ ")
        assert "runs without dask-otel" in said
        _, (said,) = ask(cluster.scheduler_address.removeprefix("tcp://"))
        assert "runs without dask-otel" in said

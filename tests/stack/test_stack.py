"""The compose file and all that it mounts fit together, as far as can be told without an engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import yaml
from support.backends import need
from support.dashboards import load, queries
from support.names import prometheus_names
from support.processes import cluster

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "grafana"


def read(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


COMPOSE = read("docker-compose.yml")["services"]
SOURCES = read("grafana/provisioning/datasources/datasources.yml")
#: Keys that Grafana's own structures have; there is no schema.
SOURCE_KEYS = {"name", "type", "uid", "access", "url", "isDefault", "jsonData"}
PROVIDER_KEYS = {
    *("name", "orgId", "folder", "folderUid", "type", "disableDeletion", "allowUiUpdates", "updateIntervalSeconds"),
    "options",
}


def test_services():
    assert set(COMPOSE) == {
        *("grafana", "prometheus", "tempo", "jaeger", "collector", "scheduler", "worker", "workload"),
    }
    assert COMPOSE["worker"]["deploy"]["replicas"] == 2
    assert COMPOSE["scheduler"]["command"] == ["dask", "scheduler", "--preload", "dask_otel"]
    assert all(port.startswith("127.0.0.1:") for s in COMPOSE.values() for port in s.get("ports", ()))


def test_services_start_again_and_say_whether_they_are_healthy():
    assert {name for name, service in COMPOSE.items() if service.get("restart") != "unless-stopped"} == set()
    assert {name for name, service in COMPOSE.items() if "healthcheck" in service} == {
        *("grafana", "prometheus", "scheduler"),
    }
    assert COMPOSE["worker"]["depends_on"] == {"scheduler": {"condition": "service_healthy"}}


def test_data_outlives_a_container_and_memory_has_a_limit():
    kept = {volume for service in COMPOSE.values() for volume in service.get("volumes", ()) if volume[0] not in "./"}
    assert kept == {"grafana:/var/lib/grafana", "prometheus:/prometheus", "tempo:/var/tempo"}
    assert {each.split(":")[0] for each in kept} == set(read("docker-compose.yml")["volumes"])
    assert "--storage.tsdb.path=/prometheus" in COMPOSE["prometheus"]["command"]
    assert COMPOSE["jaeger"]["deploy"]["resources"]["limits"]["memory"] == "1GB"


def test_who_opens_grafana_without_login_changes_nothing():
    environment = COMPOSE["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert "GF_AUTH_DISABLE_LOGIN_FORM" not in environment  # an editor logs in


def test_the_versions_that_a_client_needs_are_those_of_the_image():
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    python, dask = re.search(r"needs Python (\S+) and distributed (\S+)\.\n", text).groups()
    build = COMPOSE["scheduler"]["build"]["dockerfile_inline"]
    assert f"python:{python}." in build
    assert f"dask[complete]=={dask}'" in build
    page = (ROOT / "docs/stack.md").read_text(encoding="utf-8")
    assert f"Python {python} and distributed {dask}" in page
    assert re.search(r"Docker Compose [\d.]+", text)[0] in page


@pytest.mark.slow
def test_the_scheduler_s_health_check(tmp_path):
    """What the container would run, against a real scheduler."""
    program = COMPOSE["scheduler"]["healthcheck"]["test"][-1]
    with cluster(tmp_path, workers=0) as processes:
        port = urlsplit(processes.client.dashboard_link).port
        healthy = [sys.executable, "-c", program.replace(":8787", f":{port}")]
        assert subprocess.run(healthy).returncode == 0
    assert subprocess.run(healthy, stderr=subprocess.DEVNULL).returncode == 1


def test_one_image_is_built_once():
    """Several services that build the same one get in each other's way."""
    ours = {name for name, service in COMPOSE.items() if service["image"] == "dask-otel:local"}
    assert ours == {"scheduler", "worker", "workload"}
    assert [name for name, service in COMPOSE.items() if "build" in service] == ["scheduler"]


def test_images_are_pinned():
    images = {service["image"] for service in COMPOSE.values()} - {"dask-otel:local"}
    assert all(re.search(r":v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?$", image) for image in images), images


def test_what_is_pinned_is_what_is_tested():
    backends = (ROOT / ".ci/backends").read_text(encoding="utf-8")
    tested = dict(re.findall(r"^(\w+)=v\d+\.(\d+)\.\d+", backends, re.MULTILINE))
    assert COMPOSE["prometheus"]["image"] == f"prom/prometheus:v{tested['prometheus'][0]}.{tested['prometheus'][1:]}.0"
    assert f":0.{tested['collector']}." in COMPOSE["collector"]["image"]
    jaeger = re.search(r"^jaeger=.*# Jaeger (\S+)", backends, re.MULTILINE)
    assert COMPOSE["jaeger"]["image"].startswith(f"jaegertracing/jaeger:{jaeger[1]}.")


def test_what_is_mounted_exists():
    mounts = [volume for service in COMPOSE.values() for volume in service.get("volumes", ())]
    paths = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert len(paths) == 6
    assert all((ROOT / path).exists() for path in paths)
    inside = {mount.split(":")[1] for mount in mounts if ":" in mount}
    for service in COMPOSE.values():
        for option in service.get("command", ()):
            match = re.match(r"--?config[.=](?:file=)?(/.*)", option)
            assert not match or match[1] in inside, option


def test_addresses_lead_to_services():
    texts = [path.read_text(encoding="utf-8") for path in (GRAFANA / "collector.yml", GRAFANA / "prometheus.yml")]
    texts += [yaml.safe_dump(SOURCES), yaml.safe_dump(COMPOSE)]
    hosts = {host for text in texts for host in re.findall(r"(?:(?:http|tcp)://|endpoint: )([a-z][\w.]*):\d+", text)}
    assert hosts - {"localhost"} <= set(COMPOSE)
    assert {"prometheus", "tempo", "jaeger", "collector", "scheduler"} <= hosts


def test_the_shortest_bar_is_longer_than_the_interval_of_exports():
    export = int(COMPOSE["scheduler"]["environment"]["OTEL_METRIC_EXPORT_INTERVAL"]) / 1000
    (prometheus,) = [each for each in SOURCES["datasources"] if each["type"] == "prometheus"]
    assert export * 2 < int(prometheus["jsonData"]["timeInterval"].removesuffix("s"))


def test_data_sources():
    assert set(SOURCES) == {"apiVersion", "prune", "datasources"}
    by_uid = {source["uid"]: source for source in SOURCES["datasources"]}
    assert set(by_uid) == {"prometheus", "tempo", "jaeger"}
    assert all(set(source) <= SOURCE_KEYS for source in by_uid.values())
    assert [uid for uid, source in by_uid.items() if source.get("isDefault")] == ["prometheus"]
    exemplars = by_uid["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert {each["name"] for each in exemplars} == {"trace_id"}
    assert exemplars[0]["datasourceUid"] == "tempo"
    for uid in ("tempo", "jaeger"):
        data = by_uid[uid]["jsonData"]
        assert data["nodeGraph"] == {"enabled": True}
        metrics = data["tracesToMetrics"]
        assert metrics["datasourceUid"] == "prometheus"
        assert metrics["tags"] == [{"key": "dask.span.root", "value": "dask_span_root"}]
        assert all("$$__tags" in query["query"] for query in metrics["queries"])


def test_dashboards_are_found():
    providers = read("grafana/provisioning/dashboards/dashboards.yml")["providers"]
    (provider,) = providers
    assert set(provider) <= PROVIDER_KEYS
    environment = COMPOSE["grafana"]["environment"]
    home = environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in COMPOSE["grafana"]["volumes"]
    assert home.startswith(provider["options"]["path"])
    assert Path(home).name in load()


@pytest.mark.slow
def test_dashboards_are_what_their_source_makes():
    code = "import json; from grafana.source import dashboards; print(json.dumps(dashboards()))"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = {path.name: path.read_text(encoding="utf-8") for path in (GRAFANA / "dashboards").iterdir()}
    assert json.loads(made) == files, "run: python -m grafana.source"


@pytest.mark.parametrize("name", load())
def test_a_dashboard_has_only_what_grafana_knows(name):
    """Read and written again by Grafana's own models, which leave out what they do not know."""
    if sys.version_info < (3, 11):
        pytest.skip("grafana-foundation-sdk needs Python 3.11")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a newer kind of dashboard is preferred
        from grafana_foundation_sdk.cog.encoder import JSONEncoder
        from grafana_foundation_sdk.cog.plugins import register_default_plugins
        from grafana_foundation_sdk.models.dashboard import Dashboard

        register_default_plugins()
        dashboard = load()[name]
        again = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
        assert list(lost(dashboard, again)) == []
        dashboard["panels"][0]["options"]["colour"] = "red"
        again = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
        assert list(lost(dashboard, again)) == ["$.panels[0].options.colour"]


def lost(before, after, path="$"):
    if isinstance(before, dict):
        for key, value in before.items():
            if not isinstance(after, dict) or key not in after:
                yield f"{path}.{key}"
            else:
                yield from lost(value, after[key], f"{path}.{key}")
    elif isinstance(before, list):
        if not isinstance(after, list) or len(before) != len(after):
            yield path
        else:
            for number, (one, other) in enumerate(zip(before, after, strict=True)):
                yield from lost(one, other, f"{path}[{number}]")
    elif before != after:
        yield path


@pytest.mark.parametrize("dashboard", load().values(), ids=lambda dashboard: dashboard["uid"])
def test_a_dashboard_can_be_read(dashboard):
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"]
        if panel["type"] in ("timeseries", "stat"):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        if panel["type"] == "timeseries":
            assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert "cluster" in {variable["name"] for variable in dashboard["templating"]["list"]}
    links = {link["title"]: link for link in dashboard["links"]}
    assert links["Dask"]["tags"] == dashboard["tags"]
    assert set(links) == {"Dask", "Dask's dashboard", "dask-otel's page"}


@pytest.mark.parametrize("dashboard", load().values(), ids=lambda dashboard: dashboard["uid"])
def test_panels_do_not_overlap(dashboard):
    taken = set()
    for panel in dashboard["panels"]:
        at = SimpleNamespace(**panel["gridPos"])
        cells = {(x, y) for x in range(at.x, at.x + at.w) for y in range(at.y, at.y + at.h)}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_only_metrics_that_exist_are_asked_for_and_all_are_shown_somewhere():
    asked = {name for query in queries() for name in re.findall(r"\b(?:dask|otel)_\w+(?=[{\[])", query.expression)}
    rules = read("grafana/rules/dask.yml")["groups"][0]["rules"]
    alerted = {name for rule in rules for name in re.findall(r"\b(?:dask|otel)_\w+(?=[{\[])", rule["expr"])}
    known = set(prometheus_names())
    assert asked | alerted <= known
    metrics = {re.sub("_(bucket|sum|count)$", "", name) for name in known}
    assert metrics - {re.sub("_(bucket|sum|count)$", "", name) for name in asked} == set()


def test_every_alert_says_what_to_do():
    for rule in read("grafana/rules/dask.yml")["groups"][0]["rules"]:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert len(rule["annotations"]["description"]) > 100
        assert rule["labels"] == {"severity": "warning"}


@pytest.mark.slow
@pytest.mark.backend
def test_alerts_fire_when_they_should():
    run = subprocess.run(
        [need("promtool"), "test", "rules", GRAFANA / "rules/dask_test.yml"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    tests = read("grafana/rules/dask_test.yml")["tests"]
    fired = {t["alertname"] for each in tests for t in each["alert_rule_test"] if t["exp_alerts"]}
    assert fired == {rule["alert"] for rule in read("grafana/rules/dask.yml")["groups"][0]["rules"]}


@pytest.mark.slow
@pytest.mark.backend
def test_prometheus_takes_its_configuration():
    run = subprocess.run(
        [need("promtool"), "check", "config", GRAFANA / "prometheus.yml"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr

"""What is documented is what is."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml
from support.dashboards import load
from support.memory import MemoryExporter, make_sink

import dask_otel
from dask_otel.cli.main import dask_otel as commands
from dask_otel.config import MAX_BOUNDS
from dask_otel.otlp.environment import Limits, make_resource
from dask_otel.otlp.exporter import MAX_REQUESTS
from dask_otel.otlp.transport import Sender
from dask_otel.safety import MAX_IN_A_ROW, Safety
from dask_otel.schema import (
    ATTRIBUTES,
    MAX_ACTIVITIES,
    MAX_ERROR_TYPES,
    MAX_PREFIXES,
    MAX_ROOT_NAMES,
    MAX_SERIES,
    METRIC,
    METRICS,
    RESOURCE,
    UNUSED_AFTER,
)
from dask_otel.status.report import StatusReport

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tables(text):
    """Rows of each table by the heading above it."""
    out, heading = {}, ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        elif line.startswith("|") and not re.match(r"\|[-|\s]+$", line):
            out.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return {heading: rows[1:] for heading, rows in out.items()}


TABLES = runpy.run_path(str(ROOT / "docs/tables.py"))


@pytest.mark.parametrize("path", TABLES["PAGES"], ids=lambda path: path.name)
def test_tables_are_those_of_the_schema(path):
    """``python docs/tables.py`` rewrites them."""
    text = path.read_text(encoding="utf-8")
    assert TABLES["rewritten"](text) == text


def test_each_attribute_of_spans_and_resources_each_metric_and_each_table_is_on_the_pages():
    text = "".join(path.read_text(encoding="utf-8") for path in TABLES["PAGES"])
    assert re.findall(r"<!-- schema: (.*) -->", text) == list(TABLES["TABLES"])
    assert text.count("<!-- end -->") == len(TABLES["TABLES"])
    for name, attribute in ATTRIBUTES.items():
        assert f"`{name}`" in text or {*attribute.on} <= {METRIC}, name
    assert all(f"| `{name}` |" in text for name in METRICS)


def test_resource_table_lists_exactly_what_is_emitted(monkeypatch):
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    made = make_resource(service_name="dask-scheduler", instance_id="id", version="1", cluster_name="prod")
    assert set(made.attributes) == {name for name, attribute in ATTRIBUTES.items() if RESOURCE in attribute.on}


def test_metrics_page_names_the_limits_that_hold():
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert f"At most {MAX_SERIES:,} series" in text
    assert f"{MAX_PREFIXES} task prefixes and {MAX_ROOT_NAMES} root spans" in text
    assert f"{MAX_ACTIVITIES} activities and types of errors" in text
    assert MAX_ACTIVITIES == MAX_ERROR_TYPES
    assert f"at most {MAX_BOUNDS} each" in text
    assert UNUSED_AFTER == 86_400


def test_the_panels_that_questions_name_exist():
    titles = {}
    for dashboard in load().values():
        titles[dashboard["title"]] = {panel["title"] for panel in dashboard["panels"] if panel["type"] != "row"}
    rows = tables((ROOT / "docs/questions.md").read_text(encoding="utf-8"))["Which question, which panel"]
    named = {}
    for _, dashboard, panels in rows:
        named.setdefault(dashboard, set()).update(re.findall(r"\*\*([^*]+)\*\*", panels))
    assert set(named) == set(titles)
    assert all(panels <= titles[dashboard] for dashboard, panels in named.items())


def test_the_stack_page_names_what_there_is():
    text = (ROOT / "docs/stack.md").read_text(encoding="utf-8")
    rules = yaml.safe_load((ROOT / "grafana/rules/dask.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    assert [row[0].strip("`") for row in tables(text)["Alerts"]] == [rule["alert"] for rule in rules]
    for row in tables(text)["What is where"]:
        first, *others = re.findall(r"`([\w./-]+)`", row[0])
        assert (ROOT / first).exists()
        assert all((ROOT / name).exists() or (ROOT / first).with_name(name).exists() for name in others), row


def test_settings_table():
    rows = tables((ROOT / "docs/settings.md").read_text(encoding="utf-8"))["Our own"]

    def flat(values, path):
        for name, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{path}.{name}")
            else:
                yield f"`{path}.{name}`", f"`{yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}`"

    defaults = yaml.safe_load((Path(dask_otel.__file__).parent / "otel.yaml").read_text(encoding="utf-8"))
    assert [(name, default) for name, default, _ in rows] == list(flat(defaults["otel"], "otel"))


def test_status_table_lists_exactly_what_the_status_says():
    class Bridge:
        why_ended = ""

        def status(self):
            return {"open_segments": 0, "open": [], "sweep": {}}

    sink = make_sink(Sender("memory", MemoryExporter()), Safety())
    status = StatusReport("id", Bridge(), sink, Safety(), cluster_name=None, trace_url=None).status()
    sink.close(1)
    rows = tables((ROOT / "docs/health.md").read_text(encoding="utf-8"))["status.json"]
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row[0])] == list(status)
    described = next(row[1] for row in rows if row[0] == "`exporters`")
    assert set(status["exporters"][0]) | set(status["exporters"][0]["queue"]) <= set(re.findall(r"`(\w+)`", described))


def test_delivery_page_names_the_limits_that_hold():
    text = (ROOT / "docs/delivery.md").read_text(encoding="utf-8")
    limits = Limits()
    assert f"At most {limits.max_waiting:,} spans" in text
    assert f"{limits.max_bytes // 2**20} MiB" in text
    assert f"at most {limits.max_batch} spans" in text
    assert f"waits {limits.delay} s" in text
    assert f"until it has made {MAX_REQUESTS} requests" in text
    assert f"After {MAX_IN_A_ROW} failures" in (ROOT / "docs/health.md").read_text(encoding="utf-8")


def test_readme_has_the_two_commands_and_the_set_up():
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", README, re.DOTALL)
    assert any(block.strip().endswith("dask-otel demo") and len(block.strip().splitlines()) == 1 for block in blocks)
    assert any(block.strip().endswith("pytest") and len(block.strip().splitlines()) == 1 for block in blocks)
    assert any("DASK_DISTRIBUTED__SCHEDULER__PRELOAD=dask_otel" in block for block in blocks)


def test_readme_names_only_commands_that_exist():
    assert set(re.findall(r"(?:`|bin/)dask-otel ([a-z]+)", README)) == set(commands.list_commands(None))


@pytest.mark.parametrize(
    "page", ["README.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_readme_python_examples_run():
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        compile(block, "README.md", "exec")


def test_the_changelog_has_this_version():
    assert f"## {dask_otel.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_oldest_versions_in_ci_are_those_of_the_package():
    lines = (ROOT / ".ci/oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if "==" in line)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.scripts]")[0]
    floors = dict(
        re.findall(r'"((?:dask|distributed|opentelemetry|google|grpc|protobuf|requests)[\w-]*)>=([\d.]+)"', project)
    )
    assert floors
    assert {name: (oldest[name] + ".0").startswith(version + ".") for name, version in floors.items()} == dict.fromkeys(
        floors, True
    )

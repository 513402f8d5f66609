"""What is documented is what is."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import types
from pathlib import Path

import dask
import distributed
import pytest
import yaml
from distributed import Client, LocalCluster, span, wait
from support.backends import need
from support.dashboards import load
from support.environment import environment
from support.memory import MemoryExporter, make_sink
from support.misbehaving import Misbehaving

import dask_otel
from dask_otel import config
from dask_otel.cli.main import dask_otel as commands
from dask_otel.config import DEFAULTS, MAX_BOUNDS
from dask_otel.errors import Remarks
from dask_otel.otlp import recent_runs
from dask_otel.otlp.environment import METRICS as METRICS_SIGNAL
from dask_otel.otlp.environment import TRACES, Limits, delta_kinds, make_resource, otlp_protocol, read_otlp
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
from dask_otel.status.waterfall import MAX_ERRORS

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
            return {"open_segments": 0, "open": [], "sweep": {}, "forgotten": None}

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


def test_health_page_names_the_limits_of_the_runs_that_hold():
    text = (ROOT / "docs/health.md").read_text(encoding="utf-8").partition("### A run, span by span")[2]
    assert f"last {DEFAULTS['otel']['page']['runs']} runs" in text
    assert f"at most {recent_runs.MAX_SPANS:,} rows" in text
    rows, waiting = recent_runs.MAX_BYTES / 2**20, recent_runs.MAX_WAITING_BYTES / 2**20
    assert f"{rows:g} MiB of compressed rows, and {waiting:g} MiB of records that wait" in text
    assert rows + waiting < 8
    assert f"up to {MAX_ERRORS} of them" in text


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


def slugs(text):
    """The anchors of a page's headings, as the site and the usual hosts of repositories make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)"', text))


@pytest.mark.parametrize(
    "page", ["README.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_anchors_of_links_are_headings(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)]+)\)", text):
        other = (ROOT / page).parent / target if target else ROOT / page
        assert anchor in slugs(other.read_text(encoding="utf-8")), (target, anchor)


def test_readme_answers_what_people_ask_first():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"Python {re.search(r'requires-python = .>=([0-9.]+)', project)[1]} or later" in README
    assert f"distributed {re.search(r'distributed>=([0-9.]+)', project)[1]} or later" in README
    for answer in ("OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "tracebacks of exceptions", "issue tracker", "minutes"):
        assert answer in README


def test_readme_lists_every_page():
    listed = set(re.findall(r"docs/(\w+\.md)", README.partition("## Documentation")[2].partition("\n## ")[0]))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_readme_names_what_leaves_the_network():
    """In a few words what ``docs/privacy.md`` lists."""
    text = re.search(r"\*\*What leaves your network\.\*\*.*?\n\n", README, re.DOTALL)[0].replace("\n", " ")
    for what in ("spans, task groups and tasks", "types of results", "messages and tracebacks of exceptions"):
        assert what in text
    assert "names of clients and workers, addresses of workers, and the scheduler's host name" in text
    # By Dask's default, clients send no file and line.
    assert "file and line that submitted the work only if your clients send them" in text
    defaults = yaml.safe_load((Path(distributed.__file__).parent / "distributed.yaml").read_text(encoding="utf-8"))
    assert defaults["distributed"]["diagnostics"]["computations"]["nframes"] == 0


def test_every_page_is_in_the_site_and_the_first_page_leads_to_it():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    first = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages == set(re.findall(r": (\w+\.md)$", site, re.MULTILINE)) - {
        "overview.md",
        "changelog.md",
        "benchmarks.md",
        "examples.md",
    }
    assert pages - {"index.md"} <= set(re.findall(r"\]\((\w+\.md)", first))


def test_the_site_shows_examples_as_text_and_links_to_it():
    """A link to a file would be a download."""
    hooks = runpy.run_path(str(ROOT / "docs/site_hooks.py"))
    page = hooks["_examples"]()
    for path in (ROOT / "examples").rglob("*.*"):
        assert "__pycache__" in path.parts or path.read_text(encoding="utf-8").rstrip() in page
    recipes = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="recipes.md"))
    text = hooks["on_page_markdown"]((ROOT / "docs/recipes.md").read_text(encoding="utf-8"), recipes)
    links = set(re.findall(r"\]\(([^)]*examples[^)]*)\)", text))
    assert links == {f"examples.md#{anchor}" for anchor in re.findall(r"^## .* \{: #(\S+) \}$", page, re.MULTILINE)}


def test_the_site_can_be_switched_between_light_and_dark():
    """Without a choice "auto", a reader who has been there once keeps the scheme of that visit."""
    palette = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["theme"]["palette"]
    assert [each["media"] for each in palette] == [
        "(prefers-color-scheme)",
        "(prefers-color-scheme: light)",
        "(prefers-color-scheme: dark)",
    ]
    assert all(each["toggle"]["name"] for each in palette)


#: What the issue's readers asked, and a word of the answer's page.
QUESTIONS = {
    "backends.md": "Honeycomb Datadog Grafana Dynatrace New Relic collector",
    "recipes.md": (
        "operator Helm dask-gateway Slurm PBS cloudprovider MPI Coiled Saturn container GPUs "
        "Airflow Prefect FastAPI MLflow"
    ),
    "index.md": "user's month preset lacks running",
}


@pytest.mark.parametrize("page", QUESTIONS)
def test_questions_have_answers(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert [word for word in QUESTIONS[page].split() if word.lower() not in text.lower()] == []


def test_every_recipe_says_first_what_happens_without_the_package():
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    recipes = dict(re.findall(r"^## (.*)\n\n(.*)$", text, re.MULTILINE))
    del recipes["Names of the cluster and the user"], recipes["Airflow, Prefect, FastAPI, MLflow"]
    assert len(recipes) == 13
    for title, first in recipes.items():
        assert first.startswith(("If the package is missing", "Without the line that installs")), title


def test_each_system_says_how_the_names_of_cluster_and_user_get_in():
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    systems = " ".join(row[0] for row in tables(text)["Names of the cluster and the user"])
    recipes = [heading.partition(":")[0] for heading in re.findall(r"^## (.*)$", text, re.MULTILINE)]
    other = {"Names of the cluster and the user", "GPUs", "Log lines", "Requests and log records of tasks"}
    other.add("Airflow, Prefect, FastAPI, MLflow")
    missing = [name for name in recipes if name not in other and name.lower() not in systems.lower()]
    assert missing == []
    assert "dask cuda worker" in systems


def test_the_filter_for_log_lines_is_that_of_the_example():
    """The example runs in ``test_examples.py``; the page leaves its comments out."""
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(handler = logging.*?)```", text, re.DOTALL)
    example = (ROOT / "examples/log_lines.py").read_text(encoding="utf-8")
    wanted = [line.strip() for line in block[1].splitlines() if line.strip()]
    found = [line.strip() for line in example.splitlines()]
    assert [line for line in wanted if line not in found] == []


def test_every_vendor_has_its_page():
    rows = tables((ROOT / "docs/backends.md").read_text(encoding="utf-8"))["Backends"]
    assert len(rows) == 7
    assert all("](https://" in row[-1] for row in rows)


VENDORS = dict(
    re.findall(
        r"^##+ ([^\n]*)\n(?:(?!^##).)*?```sh\n(.*?)```",
        (ROOT / "docs/backends.md").read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
)


@pytest.mark.parametrize("vendor", VENDORS)
def test_dask_otel_understands_what_the_page_sets(monkeypatch, vendor):
    shell = subprocess.run(
        ["sh", "-euc", f"set -a\n{VENDORS[vendor]}\nenv"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert shell.stderr == ""
    variables = re.findall("^(OTEL_.*?)=(.*)$", shell.stdout, re.MULTILINE)
    assert len(variables) == len(VENDORS[vendor].splitlines())
    for name, value in variables:
        monkeypatch.setenv(name, value)
    remarks = Remarks()
    for signal in (TRACES, METRICS_SIGNAL) if "Jaeger" not in vendor else (TRACES,):
        settings = read_otlp(signal, otlp_protocol(remarks, signal), remarks)
        assert bool(settings.headers) == ("HEADERS" in VENDORS[vendor])
        if "Honeycomb" in vendor:
            assert settings.headers["x-honeycomb-team"] == "KEY"
        if "Authorization=" in VENDORS[vendor]:
            scheme, space, _ = settings.headers["authorization"].partition(" ")
            assert scheme in ("Basic", "Bearer", "Api-Token")
            assert space
    delta_kinds(remarks)
    assert remarks.problems == []


def test_each_vendor_has_a_block():
    assert len(VENDORS) == 8


@pytest.mark.slow
@pytest.mark.backend
def test_a_collector_takes_the_page_s_configuration(tmp_path):
    text = (ROOT / "docs/backends.md").read_text(encoding="utf-8")
    file = tmp_path / "collector.yml"
    file.write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    env = environment({"VENDOR_ENDPOINT": "https://otlp.example.com", "VENDOR_KEY": "key"})
    checked = subprocess.run([need("otelcol"), "validate", "--config", file], env=env, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_the_strict_preset_excludes_all_that_can_be_excluded():
    text = (ROOT / "docs/privacy.md").read_text(encoding="utf-8")
    (variables,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    preset, mixed = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    for given in (preset, dask.config.collect_env(dict([variables.strip().split("=")]))):
        with dask.config.set(given):
            settings = config.load(pytest.fail)
        assert set(settings.capture.values()) == {False}
        assert settings.annotations == ()
    with dask.config.set(mixed):
        assert config.load(pytest.fail).capture == settings.capture | {"tags": True}
    rows = tables(text)["What leaves your network"]
    own = [row[3].strip("`") for row in rows if row[2] in ("no", "pseudonyms")]
    assert own == [f"otel.capture.{name}" for name in settings.capture]


def test_what_a_month_costs_is_not_less_than_what_was_measured():
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    formula = re.search(r"([\d,]+) S \+ ([\d,]+) G \+ ([\d,]+) T \+ ([\d,]+)\)", text)
    per_span, per_group, per_task, per_run = (int(number.replace(",", "")) for number in formula.groups())
    rows = tables(text)["How much is sent"][1:]  # without the line below the head
    assert len(rows) == 4
    for name, _, *levels, _ in rows:
        (spans, _), (groups, _), (tasks, total) = (
            (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) (?:span|kB)", level)) for level in levels
        )
        runs = spans if "without a span" in name else 1
        estimate = per_span * spans + per_group * (groups - spans) + per_task * (tasks - groups) + per_run * runs
        assert 0.85 * total <= estimate / 1000 <= 2 * total, name
    runs, spans, groups, tasks = 30_000, 5, 10, 5
    total = runs * (per_span * spans + per_group * groups + per_task * tasks + per_run)
    assert f"{runs * (spans + groups + tasks):,} spans and {total / 1e6:.0f} MB" in text
    exports, small, largest, size = 43_200, 100, 900, 150
    assert re.search(rf"exports . data points . {size} bytes", text)
    assert f"{exports:,} exports" in text
    assert f"about {small} data points, which makes {exports * small * size / 1e7:.0f}0 MB" in text
    assert f"[about {largest}](cost.md#overview), which makes {exports * largest * size / 1e9:.1f} GB" in text
    cost = (ROOT / "docs/cost.md").read_text(encoding="utf-8")
    counted = int(re.search(rf"{MAX_SERIES:,} series; (\d+) as OpenTelemetry counts", cost)[1])
    assert 0.95 * largest <= counted <= largest


class Counting(Misbehaving):
    """Counts the bytes of requests."""

    size = 0

    def take(self, request):
        self.size += request.ByteSize()
        super().take(request)


def fail_twice_in_each_of_five_spans(client, length):
    for number in range(5):
        with span(f"step {number}"):
            wait(client.map(raise_message, [length] * 2, pure=False))


def raise_message(length):
    raise ValueError("x" * length)


@pytest.mark.slow
def test_what_a_month_costs_with_long_messages():
    """The formula holds for the length that it covers, and what is to be added for longer ones is what they add."""
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    on_task = int(re.search(r"M . \((\d) F \+ G \+ S\)", text)[1])
    covered = int(re.search(r"covers messages of about (\d+) bytes", text)[1])
    formula = re.search(r"([\d,]+) S \+ ([\d,]+) G \+ ([\d,]+) T \+ ([\d,]+)\)", text)
    per_span, per_group, per_task, per_run = (int(number.replace(",", "")) for number in formula.groups())
    sizes = {}
    for length in (covered, 10 * covered):
        with Counting("grpc") as receiver, pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", receiver.endpoint)
            settings = {"distributed.scheduler.preload": ["dask_otel"]}
            with (
                dask.config.set(settings),
                LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as local,
                Client(local) as client,
            ):
                fail_twice_in_each_of_five_spans(client, length)
            assert len(receiver.wait(lambda spans: True, timeout=1)) == 20
            sizes[length] = receiver.size
    assert sizes[covered] <= 5 * per_span + 5 * per_group + 10 * per_task + 5 * per_run
    added = 9 * covered * (on_task * 10 + 5 + 5)
    assert sizes[10 * covered] - sizes[covered] == pytest.approx(added, rel=0.05)


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

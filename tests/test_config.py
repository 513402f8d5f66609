from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import dask
import jsonschema
import pytest
import yaml
from support.callers import anchored, inside

import dask_otel
from dask_otel import config
from dask_otel.schema import SPAN_DURATION, TASK_DURATION

PACKAGE = Path(dask_otel.__file__).parent
DEFAULTS = yaml.safe_load((PACKAGE / "otel.yaml").read_text())
SCHEMA = yaml.safe_load((PACKAGE / "otel-schema.yaml").read_text())


def loaded(**settings):
    complaints: list[str] = []
    with dask.config.set(settings):
        return config.load(lambda error: complaints.append(str(error))), complaints


def test_schema_is_a_schema_and_the_defaults_follow_it():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(DEFAULTS, SCHEMA)


def test_schema_and_defaults_have_the_same_settings_and_each_is_described():
    def compare(defaults, schema, path):
        assert set(defaults) == set(schema["properties"]), path
        for name, value in defaults.items():
            described = schema["properties"][name]
            if described["type"] == "object":
                assert described["additionalProperties"] is False
                compare(value, described, f"{path}.{name}")
            else:
                assert described["description"], f"{path}.{name}"

    compare(DEFAULTS["otel"], SCHEMA["properties"]["otel"], "otel")


def test_defaults():
    settings, complaints = loaded()
    assert complaints == []
    assert settings == config.Settings(
        cluster_name=None,
        trace_url=None,
        annotations=(),
        split_groups=True,
        verdicts=True,
        sweep_interval=1.0,
        shutdown_timeout=10.0,
        forget_spans=None,
        idle_timeout=5.0,
        max_segment=3600.0,
        pending_span_after=15.0,
        max_groups=500,
        slowest_tasks=0,
        level="tasks",
        default_spans="full",
        max_rate=60_000,
        folder=None,
        folder_size=100 * 2**20,
        page_runs=20,
        worker_plugin=True,
        worker_spans="any",
        worker_max_rate=6000,
        client_context="parent",
        link_after=43_200.0,
        phase_threshold=0.05,
        excluded_metrics=frozenset(),
        root_names=(),
        task_bounds=TASK_DURATION.bounds,
        span_bounds=SPAN_DURATION.bounds,
        capture=dict.fromkeys(("message", "traceback", "keys", "tags", "code", "types", "clients"), True),
        capture_user=False,
    )


def test_a_password_in_the_link_is_refused_and_not_shown():
    settings, (complaint,) = loaded(**{"otel.trace-url": "http://u:secret@jaeger/{trace_id}"})
    assert settings.trace_url is None
    assert "no password" in complaint
    assert "secret" not in complaint


@pytest.mark.parametrize(("value", "shown"), [("no", False), (0, False), ("OFF", False), (True, True), ("on", True)])
def test_yes_and_no(value, shown):
    settings, complaints = loaded(**{"otel.capture.keys": value})
    assert (settings.capture["keys"], complaints) == (shown, [])
    assert settings.capture["tags"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"otel.capture.keys": "perhaps"},
        {"otel.capture.tags": None},
        {"otel.capture.key": False},
        {"otel.capture": 7},
        {"otel.capture.preset": "strcit"},
        {"otel.capture.preset": None},
        {"otel.capture.preset": False},
        {"otel.capture.keys": "strict"},
    ],
)
def test_a_doubtful_wish_to_hide_something_hides_everything(wrong):
    with dask.config.set({"otel.capture.types": True}):
        settings, complaints = loaded(**wrong)
    assert len(complaints) == 1
    assert not any(settings.capture.values())


@pytest.mark.parametrize(
    ("preset", "explicit", "shown"),
    [
        ("all", {}, {"tags", "message"}),
        ("all", {"message": False}, {"tags"}),
        ("strict", {}, set()),
        ("strict", {"tags": True}, {"tags"}),
        (" Strict", {"tags": "on", "message": "preset"}, {"tags"}),
    ],
)
def test_switches_have_priority_over_the_preset(preset, explicit, shown):
    settings, complaints = loaded(
        **{"otel.capture.preset": preset}, **{f"otel.capture.{name}": value for name, value in explicit.items()}
    )
    assert complaints == []
    assert {name for name in ("tags", "message") if settings.capture[name]} == shown
    others = {is_on for name, is_on in settings.capture.items() if name not in ("tags", "message")}
    assert others == {preset == "all"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DASK_OTEL__CAPTURE", "strict"),
        ("DASK_OTEL__CAPTRE__PRESET", "strict"),
        ("DASK_OTEL__CAPTURE_PRESET", "strict"),
        ("DASK_OTEL_CAPTURE__PRESET", "strict"),
        ("DASK_OTEL_CAPTURE_PRESET", "strict"),
        ("DASK_OTEL_CAPTURE_MESSAGE", "false"),
        ("DASK_OTLE__CAPTURE__PRESET", "strict"),
        ("DASK_OTEL__PRIVACY", "strict"),
        ("DASK_OTEL", "strict"),
        ("OTEL_CAPTURE_PRESET", "strict"),
        ("DASKOTEL__CAPTURE__PRESET", "strict"),
    ],
)
def test_a_misspelt_preset_hides_everything(variable, value):
    code = "from dask_otel import config; print(config.load(lambda error: print(config.consequence(error), error)))"
    env = os.environ | {variable: value}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    (complaint,) = out.splitlines()[:-1]
    assert re.match(r"hides all .* cannot be used: it must be .*(capture|preset: strict|double underscores)", complaint)
    assert "'message': False" in out
    assert re.search(r"capture={[^}]*}", out)[0].count("False") == 7


@pytest.mark.parametrize(
    "others",
    [
        {"otel.traces.levl": "groups"},
        {"otel.cluster-name": "strict"},
        {"other": {"capture": {"preset": "strict"}}},
        {"otel-x": {"y": 1}},
        {"otel_tests": "/envs/prefect/bin/python"},
    ],
)
def test_other_misspelt_settings_hide_nothing(others):
    assert all(loaded(**others)[0].capture.values())


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("otel.traces.idle-timeout", "-1s", "a time between 0s and 1h"),
        ("otel.traces.idle-timeout", -1, "a time between 0s and 1h"),
        ("otel.traces.idle-timeout", "2h", "a time between 0s and 1h"),
        ("otel.traces.idle-timeout", "soon", "a time between"),
        ("otel.traces.idle-timeout", None, "a time between"),
        ("otel.traces.idle-timeout", [5], "a time between"),
        ("otel.traces.idle-timeout", True, "a time between"),
        ("otel.traces.idle-timeout", float("nan"), "a time between"),
        ("otel.traces.max-segment", "0s", "a time between 1s and 7 days"),
        ("otel.sweep-interval", 0, "a time between 10ms and 1m"),
        ("otel.shutdown-timeout", "1 day", "a time between 0s and 10m"),
        ("otel.annotations", "[team, project", "a list of names"),
        ("otel.annotations", "team: red", "a list of names"),
        ("otel.annotations", "team project", "a list of names"),
        ("otel.annotations", "team,,project", "a list of names"),
        ("otel.annotations", {"team": "red"}, "a list of names"),
        ("otel.annotations", [["team"]], "a list of names"),
        ("otel.annotations", ["team", None], "a list of names"),
        ("otel.trace-url", "http://jaeger", "a link with {trace_id}"),
        ("otel.trace-url", "javascript:{trace_id}", "a link with {trace_id}"),
        ("otel.cluster-name", ["a"], "a text"),
        ("otel.traces.level", "all", "one of spans, groups, tasks"),
        ("otel.traces.default-spans", True, "one of full, segments, off"),
        ("otel.traces.max-rate", -1, "a whole number from 0"),
        ("otel.traces.max-rate", 1.5, "a whole number from 0"),
        ("otel.traces.folder", {"path": "/traces"}, "the absolute path of a folder"),
        ("otel.traces.folder", "/tra\0ces", "the absolute path of a folder"),
        ("otel.traces.folder-size", "1 MB", "a size between 1 MiB and 1 TiB"),
        ("otel.traces.folder-size", "large", "a size between 1 MiB and 1 TiB"),
        ("otel.traces.folder-size", True, "a size between 1 MiB and 1 TiB"),
        ("otel.metrics.exclude", ["dask.activity.oi"], "did you mean dask.activity.io?"),
        ("otel.metrics.exclude", "dask.activity.io dask.activity", "a list of names"),
        ("otel.metrics.root-names", "(.*)", "a list of pairs"),
        ("otel.metrics.root-names", "(.*), x", "a list of pairs"),
        ("otel.metrics.root-names", "(a.*), (b)", "a list of pairs"),
        ("otel.metrics.root-names", "(a.*, a)", "a list of pairs"),
        ("otel.metrics.root-names", [["(.*)", None]], "a list of pairs"),
        ("otel.metrics.root-names", [["(.*)"]], "a list of pairs"),
        ("otel.metrics.task-bounds", [], "a list of at most 30 rising times"),
        ("otel.metrics.task-bounds", ["1s", "1s"], "rising times"),
        ("otel.metrics.task-bounds", ["2s", "1s"], "rising times"),
        ("otel.metrics.task-bounds", list(range(1, 32)), "at most 30"),
        ("otel.metrics.span-bounds", ["soon"], "rising times"),
        ("otel.metrics.span-bounds", [float("nan")], "rising times"),
        ("otel.metrics.span-bounds", "", "rising times"),
        ("otel.metrics.span-bounds", "1s 5s", "rising times"),
        ("otel.metrics.span-bounds", "soon", "rising times"),
        ("otel.traces.max-groups", True, "a whole number from 1 to 1000"),
        ("otel.traces.max-groups", "1,000", "a whole number from 1 to 1000"),
        ("otel.traces.max-groups", "many", "a whole number from 1 to 1000"),
        ("otel.traces.max-groups", float("inf"), "a whole number from 1 to 1000"),
    ],
)
def test_a_bad_value_is_named_and_gets_its_default(setting, value, allowed):
    settings, complaints = loaded(**{setting: value})
    (complaint,) = complaints
    assert complaint.startswith(f"{setting} = {value!r} cannot be used: it must be ")
    assert allowed in complaint
    assert settings == loaded()[0]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"otel.traces.idle-timout": "5s"},
            "otel.traces.idle-timout = '5s' cannot be used: it must be one of the settings idle-timeout",
        ),
        ({"otel.traces.idle-timout": "5s"}, "did you mean otel.traces.idle-timeout?"),
        ({"otel.cluster": "x"}, "did you mean otel.cluster-name?"),
        ({"otel.traces": "5s"}, "otel.traces = '5s' cannot be used: it must be a mapping of idle-timeout"),
        ({"otel": 5}, "otel = 5 cannot be used: it must be a mapping"),
    ],
)
def test_a_setting_that_does_not_exist_is_named(settings, named):
    loaded_, complaints = loaded(**settings)
    assert named in complaints[0]
    assert loaded_ == loaded()[0]


NAMES = {
    # as a person writes it in the environment: what is taken
    "team": ("team",),
    "team,project": ("team", "project"),
    "team, project": ("team", "project"),
    " team , project, ": ("team", "project"),
    "[team, project]": ("team", "project"),
    "[team]": ("team",),
    "(team, project)": ("team", "project"),
    '["team"]': ("team",),
    "['team','project']": ("team", "project"),
    '("team",)': ("team",),
    '"team", "project"': ("team", "project"),
    "'team', project": ("team", "project"),
    '{"team"}': ("team",),
    "- team\n- project": ("team", "project"),
    "['my team', project]": ("my team", "project"),
    "team, team": ("team",),
    "[1, 2.5]": ("1", "2.5"),
    "1": ("1",),
    "1,2": ("1", "2"),
    "007": ("007",),
    "[007, on, 1.50]": ("007", "on", "1.50"),
    "True": ("True",),
    "": (),
    " ": (),
    "[]": (),
    "()": (),
    "null": (),
    "None": (),
}
METRICS = {
    "dask.activity.io": {"dask.activity.io"},
    "dask.activity.io,dask.task.duration": {"dask.activity.io", "dask.task.duration"},
    "[Dask.Activity.IO, dask.task.duration]": {"dask.activity.io", "dask.task.duration"},
    "['dask.activity.io']": {"dask.activity.io"},
    "": set(),
    "null": set(),
}
BOUNDS = {
    "1s": (1.0,),
    "5": (5.0,),
    "0.5": (0.5,),
    "1s,5s": (1.0, 5.0),
    "[1s, 5s]": (1.0, 5.0),
    "(1s, 5s)": (1.0, 5.0),
    "['1s', '5s']": (1.0, 5.0),
    "[0.1, 1]": (0.1, 1.0),
    "(0.1, 1)": (0.1, 1.0),
    "0.1,1": (0.1, 1.0),
    "100ms, 1, 1m": (0.1, 1.0, 60.0),
    "1 s, 1 minute": (1.0, 60.0),
    "- 1s\n- 5s": (1.0, 5.0),
}
PAIRS = {
    """[["(.*)'s workflow", "workflow"]]""": [("(.*)'s workflow", "workflow")],
    """[[(.*)'s workflow, workflow]]""": [("(.*)'s workflow", "workflow")],
    """(("(.*)'s workflow", "workflow"),)""": [("(.*)'s workflow", "workflow")],
    """[("a.*", "a"), ("b.*", "b")]""": [("a.*", "a"), ("b.*", "b")],
    """[[a.*, a], [b.*, b]]""": [("a.*", "a"), ("b.*", "b")],
    """- [a.*, a]\n- [b.*, b]""": [("a.*", "a"), ("b.*", "b")],
    """["a.*", "a"]""": [("a.*", "a")],
    """[[2024, 2025]]""": [("2024", "2025")],
    """[["a ", "b"]]""": [("a ", "b")],
    "": [],
    "[]": [],
    "null": [],
}
LEVELS = dict.fromkeys(("groups", "GROUPS", " Groups ", "'groups'"), "groups")
DEFAULT_SPANS = dict.fromkeys(("off", "OFF", "Off ", "False", "false"), "off") | {"FULL": "full"}
WHOLE = dict.fromkeys(("500", " 500", "'500'", "500.0", "5e2", "5E2", "0x1f4", "500."), 500)
YES = dict.fromkeys(("true", "True", "TRUE", " yes ", "on", "ON", "1", "y", "T"), True)
NO = dict.fromkeys(("false", "False", "FALSE", " no ", "off", "OFF", "0", "n", "F"), False)
TEXTS = {
    "prod": "prod",
    " prod ": "prod",
    "1.5": "1.5",
    "1.50": "1.5",  # Dask has read it as a number by then
    "'1.50'": "1.50",
    "007": "007",
    "42": "42",
    "True": "True",
    "2026-01-01": "2026-01-01",
    "a,b": "a,b",
    "": None,
    "null": None,
}
LINK = "http://jaeger/{trace_id}"
#: Of settings that a word can switch off.
TIMES = {"1h": 3600.0, "90s": 90.0, "5": 5.0} | dict.fromkeys(("", "null", "off", "False", "never", "none"))
PATHS = {
    "/var/traces": "/var/traces",
    " /a b/ ": "/a b",
    "~/traces": str(Path.home() / "traces"),
    "1": f"{Path.cwd()}/1",
}
PATHS |= dict.fromkeys(("", "null", "off", "False", "none"))
SIZES = {"100 MiB": 100 * 2**20, "'2MB'": 2_000_000, "1.5GiB": 1536 * 2**20, "2e6": 2_000_000, "5_000_000": 5_000_000}
CONTEXTS = {"LINK": "link", "none": "none", "None": "none", "null": "none", "'parent'": "parent"}
KINDS = [
    ("annotations", "annotations", NAMES),
    ("metrics.exclude", "excluded_metrics", METRICS),
    ("metrics.task-bounds", "task_bounds", BOUNDS),
    ("metrics.span-bounds", "span_bounds", BOUNDS),
    ("metrics.root-names", "root_names", PAIRS),
    ("traces.level", "level", LEVELS),
    ("traces.default-spans", "default_spans", DEFAULT_SPANS),
    ("traces.max-groups", "max_groups", WHOLE),
    ("traces.max-rate", "max_rate", WHOLE),
    ("capture.keys", "capture", YES | NO),
    ("capture.preset", "capture", {"all": True, "strict": False, "Strict": False}),
    ("capture.user", "capture_user", YES | NO),
    ("split-groups", "split_groups", YES | NO),
    ("verdicts", "verdicts", YES | NO),
    ("forget-spans", "forget_spans", TIMES),
    ("client.context", "client_context", CONTEXTS),
    ("cluster-name", "cluster_name", TEXTS),
    ("traces.folder", "folder", PATHS),
    ("traces.folder-size", "folder_size", SIZES),
    ("trace-url", "trace_url", {LINK: LINK, f" {LINK} ": LINK, "": None, "null": None}),
]


def in_environment(setting, written):
    """What Dask makes of a variable."""
    name = "DASK_OTEL__" + setting.upper().replace(".", "__").replace("-", "_")
    return dask.config.get(f"otel.{setting}", config=dask.config.collect_env({name: written}))


@pytest.mark.parametrize(
    ("setting", "field", "written", "expected"),
    [(setting, field, *form) for setting, field, forms in KINDS for form in forms.items()],
)
def test_every_form_that_people_write_in_the_environment(setting, field, written, expected):
    is_taken(setting, field, in_environment(setting, written), expected)


@pytest.mark.parametrize(
    ("setting", "field", "written", "expected"),
    [
        ("annotations", "annotations", "team", ("team",)),
        ("annotations", "annotations", "team, project", ("team", "project")),
        ("annotations", "annotations", "[team, project]", ("team", "project")),
        ("annotations", "annotations", "- team\n- project", ("team", "project")),
        ("annotations", "annotations", "\"['team', 'project']\"", ("team", "project")),
        ("annotations", "annotations", "'[team, 007]'", ("team", "007")),
        ("annotations", "annotations", "[my team, 1, 2.5, 2026-01-01]", ("my team", "1", "2.5", "2026-01-01")),
        ("annotations", "annotations", "'1.50'", ("1.50",)),
        ("annotations", "annotations", "", ()),
        ("metrics.exclude", "excluded_metrics", "dask.activity.io", {"dask.activity.io"}),
        ("metrics.task-bounds", "task_bounds", "1s, 5s", (1.0, 5.0)),
        ("metrics.task-bounds", "task_bounds", "[0.1, 1s, 1m]", (0.1, 1.0, 60.0)),
        ("metrics.task-bounds", "task_bounds", "(0.1, 1)", (0.1, 1.0)),
        ("metrics.span-bounds", "span_bounds", "1", (1.0,)),
        ("metrics.root-names", "root_names", "- [a.*, a]\n- [b.*, b]", [("a.*", "a"), ("b.*", "b")]),
        ("metrics.root-names", "root_names", "'[[a.*, a], [b.*, b]]'", [("a.*", "a"), ("b.*", "b")]),
        ("traces.level", "level", "Groups", "groups"),
        ("traces.default-spans", "default_spans", "off", "off"),
        ("traces.max-groups", "max_groups", "5.0e+2", 500),
        ("cluster-name", "cluster_name", "2026.8", "2026.8"),
    ],
)
def test_every_form_that_people_write_in_a_file(setting, field, written, expected):
    is_taken(setting, field, yaml.safe_load(written), expected)


def is_taken(setting, field, value, expected):
    settings, complaints = loaded(**{f"otel.{setting}": value})
    found = getattr(settings, field)
    if field == "root_names":
        found = [(pattern.pattern, name) for pattern, name in found]
    elif field == "capture":
        found = found["keys"]
    assert (found, complaints) == (expected, [])
    described = SCHEMA["properties"]["otel"]
    for name in setting.split("."):
        described = described["properties"][name]
    if "enum" in described:  # the schema has each word in one spelling
        value = "off" if value is False else value.strip().lower() if isinstance(value, str) else value
    jsonschema.validate(json.loads(json.dumps(value, default=list_or_text)), described)


def list_or_text(value):
    return list(value) if isinstance(value, set) else str(value)


def examples(complaint):
    """The values that an error advises to write."""
    allowed = complaint.partition("it must be ")[2]
    if match := re.search(r"one of (.*)$", allowed):
        return match[1].split(", ")
    if match := re.search(r"e\.g\. (.*)$", allowed):
        return match[1].split(" or ")
    if match := re.search(r"from (\d+) to (\d+)$", allowed):
        return list(match.groups())
    return allowed.split(" or ")


@pytest.mark.parametrize("setting", [setting for setting, _, _ in KINDS if setting != "cluster-name"])
def test_what_an_error_advises_is_taken(setting):
    _, (complaint,) = loaded(**{f"otel.{setting}": {"no": "such thing"}})
    advised = examples(complaint)
    assert advised
    for example in advised:
        for value in (in_environment(setting, example), example):
            assert loaded(**{f"otel.{setting}": value})[1] == [], complaint


@pytest.mark.parametrize("setting", ["sweep-interval", "shutdown-timeout", "traces.idle-timeout", "traces.max-segment"])
def test_what_an_error_advises_of_times_is_taken(setting):
    _, (complaint,) = loaded(**{f"otel.{setting}": "soon"})
    limits = re.search(r"a time between (.*) and (.*), e\.g\.", complaint).groups()
    for example in (*limits, *examples(complaint)):
        assert loaded(**{f"otel.{setting}": in_environment(setting, example)})[1] == [], complaint


def test_units_and_underscores():
    settings, complaints = loaded(
        **{"otel.traces.idle-timeout": "500ms", "otel.traces.max_segment": 90, "otel.cluster_name": 7}
    )
    assert complaints == []
    assert (settings.idle_timeout, settings.max_segment, settings.cluster_name) == (0.5, 90.0, "7")


def test_cluster_name_of_dask_gateway(monkeypatch):
    monkeypatch.setenv("DASK_GATEWAY_CLUSTER_NAME", "gateway.1")
    assert loaded()[0].cluster_name == "gateway.1"
    assert loaded(**{"otel.cluster-name": "mine"})[0].cluster_name == "mine"


@pytest.mark.slow
def test_environment():
    code = "from dask_otel import config; print(config.load(print))"
    env = os.environ | {"DASK_OTEL__TRACES__IDLE_TIMEOUT": "7s", "DASK_OTEL__ANNOTATIONS": "['team']"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert "idle_timeout=7.0" in out
    assert "annotations=('team',)" in out


def test_trace_url():
    with dask.config.set({"otel.trace-url": "http://jaeger/trace/{trace_id}?x={y}"}):
        assert dask_otel.trace_url("abc") == f"http://jaeger/trace/{dask_otel.trace_id('abc')}?x={{y}}"
    wrong = r"otel\.trace-url = 'http://jaeger' cannot be used: it must be a link with \{trace_id\}"
    with dask.config.set({"otel.trace-url": "http://jaeger"}), pytest.raises(ValueError, match=wrong):
        dask_otel.trace_url("abc")
    assert dask_otel.trace_url("abc") is None  # no client, no scheduler


def test_trace_id_of_the_span_around_the_caller():
    from distributed import span

    with span("outer", "middle") as _, span("inner"):
        root = dask.get_annotations()["span"]["ids"][0]
        assert dask_otel.trace_id() == dask_otel.trace_id(root)
    with inside(a="x", b=anchored(7, 8, "nonce"), c="y"), span("inner"):
        assert dask_otel.trace_id() == f"{7:032x}"
        assert dask_otel.trace_id(dask.get_annotations()["span"]["ids"]) == f"{7:032x}"
        with dask.config.set({"otel.trace-url": "http://jaeger/trace/{trace_id}"}):
            assert dask_otel.trace_url() == dask_otel.trace_url(anchored(7, 9)) == f"http://jaeger/trace/{7:032x}"
    assert dask_otel.trace_id(["x", "y"]) == dask_otel.trace_id("x")
    with pytest.raises(ValueError, match="no span here"):
        dask_otel.trace_id()


def test_a_configuration_that_was_cleared_means_the_defaults():
    with dask.config.set({"otel": {}}):
        assert config.load(lambda error: pytest.fail(str(error))) == loaded()[0]
        assert dask_otel.trace_url("abc") is None


@pytest.mark.parametrize("value", ["", " ", "1e400s"])
def test_a_time_that_dask_cannot_parse(value):
    settings, complaints = loaded(**{"otel.traces.idle-timeout": value})
    assert len(complaints) == 1
    assert settings.idle_timeout == 5.0


@pytest.mark.slow
@pytest.mark.parametrize(("variable", "named"), [("DASK_OTEL", "otel = "), ("DASK_OTEL__TRACES", "otel.traces = ")])
def test_what_stands_in_the_place_of_our_settings_is_named(variable, named):
    code = "from dask_otel import config; print(config.load(print))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {variable: "off"}, capture_output=True, text=True, check=True
    )
    assert f"{named}'off' cannot be used: it must be a mapping of" in done.stdout
    assert "idle_timeout=5.0" in done.stdout


@pytest.mark.parametrize("value", ["many", "-1", "1.5"])
def test_a_bad_limit_is_named(monkeypatch, value):
    """The one at which the SDK's import fails; what happens to the others is tested with the standard variables."""
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", value)
    with pytest.raises(ValueError, match=f"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT = '{value}' cannot be used"):
        config.check_limits()
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", " ")
    config.check_limits()


@pytest.mark.parametrize(
    ("pattern", "name", "allowed"),
    [
        ("(", "x", "unterminated"),
        ("(.*)", r"\2", "invalid group reference"),
        ("(?P<who>.*)", r"\g<whom>", "unknown group"),
        ("(a+)+b", "x", "could hold up the scheduler"),
        ("(a|a)*b", "x", "could hold up the scheduler"),
        (".*a.*b.*", "x", "could hold up the scheduler"),
    ],
)
def test_a_pattern_that_cannot_be_used(pattern, name, allowed):
    settings, (complaint,) = loaded(**{"otel.metrics.root-names": [["fine", "x"], [pattern, name]]})
    assert complaint.startswith("otel.metrics.root-names = ")
    assert allowed in complaint
    assert settings == loaded()[0]


def test_metrics():
    settings, complaints = loaded(
        **{
            "otel.metrics.exclude": ["dask.activity.io"],
            "otel.metrics.root-names": [["(?P<who>.*)'s (.*)", r"\g<2> of \1"]],
            "otel.metrics.task-bounds": ["100ms", 1, "1m"],
        }
    )
    assert complaints == []
    assert settings.excluded_metrics == {"dask.activity.io"}
    assert settings.task_bounds == (0.1, 1.0, 60.0)
    ((pattern, name),) = settings.root_names
    assert pattern.fullmatch("Alice's workflow").expand(name) == "workflow of Alice"

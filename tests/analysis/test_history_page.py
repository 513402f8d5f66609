"""What ``docs/history.md`` shows runs, and what it says of columns is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.large import large_trace
from support.memory import FACTORY

from dask_otel.analysis import Runs, load
from dask_otel.otlp.folder import FolderSender
from dask_otel.schema import ATTRIBUTES

PAGE = (Path(__file__).parents[2] / "docs/history.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("traces")
    sender = FolderSender(str(path), 2**30, "test")
    form, records = sender.form(FACTORY), large_trace(groups=60, tasks=2000)
    sender.send(form.request(map(form.span, records)))
    return path


def test_the_recipes_run(folder):
    prefix = load(folder).groups["dask.task.prefix"].dropna().iloc[0]
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code = "".join(blocks).replace("/var/lib/dask/traces", str(folder)).replace('"load"', f'"{prefix}"')
    # The trace is as old as its records say.
    code = code.replace("datetime.now() - timedelta(days=7)", "datetime(1970, 1, 1) + timedelta(days=7 * 0)")
    names = {}
    exec(compile(code, "history.md", "exec"), names)
    runs = names["runs"]
    assert len(names["slowest"]) == 10
    assert list(names["slowest"]["duration"]) == sorted(runs.groups["duration"], reverse=True)[:10]
    (root,) = names["roots"].itertuples()
    assert names["change"].to_numpy().tolist() == [[root.duration, root.duration]]
    assert names["p95"]["count"].sum() == (runs.groups["dask.task.prefix"] == prefix).sum()
    assert names["activities"].to_numpy().sum() > 0
    assert names["errors"].sum() == (runs.tasks["status"] == "error").sum() > 0
    edges = names["edges"].dropna()  # groups that were folded have no name
    last = edges[edges["step"] == edges["step"].iloc[-1]]
    numbers = [int(name.rpartition("-")[2], 16) for name in (*last["needs"], last["step"].iloc[0])]
    assert sorted(numbers) == list(range(numbers[-1] - 4, numbers[-1] + 1))


def test_the_tables_name_what_there_is(folder):
    runs = load(folder)
    rows = re.findall(r"^\| `(\w+)` \| ", PAGE.partition("## Data frames")[2], re.MULTILINE)
    assert set(rows) >= set(Runs.__dataclass_fields__)
    columns = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (\w\S*)", PAGE.partition("## Data frames")[2], re.MULTILINE)
    named = {name: dtype for names, dtype in columns for name in re.findall(r"`(\w+)`", names)}
    named = {name: dtype.rstrip(",") for name, dtype in named.items() if name in runs.spans}
    for frame in (runs.spans, runs.others):
        fixed = {name: str(dtype) for name, dtype in frame.dtypes.items() if name not in ATTRIBUTES and "." not in name}
        assert fixed == named | dict.fromkeys(("start", "end"), "datetime64[ns, UTC]")
    for names in re.findall(r"`((?:dask|exception)\.[\w.]+)`", PAGE):
        assert names in ATTRIBUTES, names

"""What holds of the package as a whole."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import distributions, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from support.processes import cluster, our_errors

import dask_otel

PACKAGE = Path(dask_otel.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
#: Loaded by ``opentelemetry-instrument`` only: whatever it imports comes with that.
INSTRUMENTOR = PACKAGE / "client/instrumentor.py"
ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "packaging/conda/recipe.yaml"


def test_public_names():
    names = [
        "OTelPlugin",
        "OTelWorkerPlugin",
        "TaskFilter",
        "__version__",
        "dask_setup",
        "describe",
        "instrument",
        "show_trace",
        "trace_id",
    ]
    names += ["trace_url", "uninstrument"]
    assert sorted(dask_otel.__all__) == names
    assert dir(dask_otel) == names
    assert all(getattr(dask_otel, name) for name in names)
    assert dask_otel.OTelPlugin.name == "dask-otel"
    assert dask_otel.__version__ == version("dask-otel")
    with pytest.raises(AttributeError, match="nothing"):
        dask_otel.nothing  # noqa: B018
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.skipif("DASK_OTEL_TEST_INSTALLED" not in os.environ, reason="only CI says that a wheel is tested")
def test_the_installed_package_is_tested():
    assert "site-packages" in PACKAGE.parts


@pytest.mark.slow
@pytest.mark.parametrize("module", ["dask_otel", "dask_otel.safety"])
def test_importing_needs_the_standard_library_only(module):
    path = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
    code = f"{path}import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    out = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    bare = subprocess.run(
        [sys.executable, "-I", "-c", code.replace(f", {module}", "")], capture_output=True, text=True, check=True
    ).stdout
    added = set(out.split()) - set(bare.split()) - set(sys.stdlib_module_names)
    assert added == {"dask_otel"}


#: What each part may import of the package and of the outside world.
ALLOWED = {
    "safety": set(),
    "errors": set(),
    "identity": set(),
    "schema": set(),
    "messages": set(),
    "patching": {"dask"},
    "diagnosis": set(),
    "spantree": {"diagnosis", "identity", "schema"},
    "metrics": {"diagnosis", "schema", "spantree"},
    "privacy": {"diagnosis", "identity", "schema", "spantree"},
    "scheduler": {
        "diagnosis",
        "identity",
        "messages",
        "metrics",
        "patching",
        "safety",
        "schema",
        "spantree",
        "threads",
        "",
        "dask",
        "distributed",
    },
    "otlp": {
        "config",
        "diagnosis",
        "errors",
        "identity",
        "metrics",
        "privacy",
        "safety",
        "schema",
        "spantree",
        "",
        "opentelemetry",
        "grpc",
        "google",
        "requests",
    },
    "status": {
        "diagnosis",
        "identity",
        "safety",
        "schema",
        "scheduler",
        "spantree",
        "",
        "dask",
        "distributed",
        "tornado",
    },
    "config": {"errors", "schema", "dask", "yaml"},
    "otlp_options": {"errors"},
    "threads": set(),
    "tracers": {"", "opentelemetry"},
    "registration": {"links", "otlp_options", "safety", "status", "distributed"},
    "current": {"identity", "worker", "dask", "distributed", "opentelemetry"},
    "links": {"otlp_options", "status", "dask", "distributed"},
    "client": {
        "config",
        "errors",
        "identity",
        "messages",
        "patching",
        "privacy",
        "safety",
        "schema",
        "scheduler",
        "tracers",
        "worker",
        "",
        "dask",
        "distributed",
        "opentelemetry",
        "wrapt",
    },
    "worker": {
        "client",
        "config",
        "errors",
        "identity",
        "messages",
        "patching",
        "privacy",
        "safety",
        "schema",
        "scheduler",
        "spantree",
        "threads",
        "tracers",
        "",
        "dask",
        "distributed",
        "opentelemetry",
    },
    "preload": {
        "config",
        "errors",
        "metrics",
        "otlp_options",
        "registration",
        "safety",
        "scheduler",
        "spantree",
        "status",
        "worker",
        "",
        "distributed",
    },
    "cli": {
        "analysis",
        "config",
        "diagnosis",
        "errors",
        "identity",
        "otlp",
        "schema",
        "spantree",
        "status",
        "",
        "click",
        "dask",
        "distributed",
        "grpc",
        "opentelemetry",
        "pandas",
        "rich",
        "tornado",
    },
    "analysis": {"schema", "numpy", "pandas"},
    "__init__": {"config", "current", "identity", "links", "preload", "safety", "dask"},
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    """`spantree` and `metrics` are pure; what reads Dask and what writes OpenTelemetry meet only in `preload`."""
    relative = path.relative_to(PACKAGE)
    part = relative.parts[0].removesuffix(".py")
    imported = set(_imports(ast.parse(path.read_text()), depth=len(relative.parts)))
    assert imported <= ALLOWED[part], f"{relative} must not import {imported - ALLOWED[part]}"


def _imports(tree, depth):
    """Parts of our package ("" for its top) and top-level names of others, the standard library left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module.partition(".")[0]]
        elif isinstance(node, ast.ImportFrom):
            if node.level == depth:  # from the package's top
                names = [node.module.partition(".")[0]] if node.module else [_top(alias.name) for alias in node.names]
            else:
                continue  # from the same part
        else:
            continue
        yield from (name for name in names if name not in sys.stdlib_module_names)


@pytest.mark.slow  # reads which files all distributions have
def test_what_is_imported_is_declared():
    """By the file of a module: distributions share packages such as ``opentelemetry`` and ``google``."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = project.partition("\ndependencies = [")[2].partition("\ntest = [")[0]
    names = {name.lower() for name in re.findall(r'"([\w.-]+)(?:\[[\w,]+\])?>=', declared)}
    owners = {str(file): dist.name.lower() for dist in distributions() for file in dist.files or ()}
    modules = {
        module
        for path in MODULES
        if path != INSTRUMENTOR
        for module in _modules(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {"grpc", "requests", "google.rpc.error_details_pb2"} <= modules
    missing = {}
    for module in modules:
        file = Path(find_spec(module).origin)
        site = next(parent for parent in file.parents if parent.name == "site-packages")
        owner = owners[file.relative_to(site).as_posix()].replace("_", "-")
        if owner not in names:
            missing[module] = owner
    assert missing == {}


def requirements(text, name):
    """Oldest versions by package, in a list of pyproject.toml."""
    listed = re.search(rf"^{name} = \[(.*?)\]$", text, re.DOTALL | re.MULTILINE)[1]
    return dict(re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)"', listed))


def test_the_conda_recipe_says_what_pyproject_says():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text = RECIPE.read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    assert recipe["context"] == {
        "version": dask_otel.__version__,
        "python_min": re.search('requires-python = ">=(.*)"', project)[1],
    }
    for part, name in (("run", "dependencies"), ("run_constraints", "cli")):
        listed = dict(each.split(" >=") for each in recipe["requirements"][part])
        if part == "run":
            assert listed.pop("python") == "${{ python_min }}"
            listed["dask"] = listed.pop("dask-core")
        assert listed == requirements(project, name)
    hatchling = re.search('requires = \\["(hatchling)>=(.*)"\\]', project).groups()
    assert " >=".join(hatchling) in recipe["requirements"]["host"]
    (command,) = recipe["build"]["python"]["entry_points"]
    assert command.replace(" = ", ' = "') + '"' in project
    assert f'description = "{recipe["about"]["summary"]}"' in project
    assert f'license = "{recipe["about"]["license"]}"' in project


def test_rattler_build_reads_the_conda_recipe():
    rattler_build = pytest.importorskip("rattler_build", reason="pip install '.[dev]'")
    (variant,) = rattler_build.Stage0Recipe.from_file(str(RECIPE)).render()
    assert (variant.recipe.package.name, str(variant.recipe.package.version)) == ("dask-otel", dask_otel.__version__)
    with pytest.raises(rattler_build.RecipeParseError, match="unknown field"):
        rattler_build.Stage0Recipe.from_yaml(RECIPE.read_text(encoding="utf-8").replace("run_constraints", "wrong"))


def _modules(tree):
    """Full names of modules of others, the standard library left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] not in sys.stdlib_module_names)


def _top(name):
    """A module of the package's top, or "" for one of its names."""
    return name if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists() else ""


@pytest.mark.slow
def test_a_broken_opentelemetry_leaves_a_running_scheduler_and_one_clear_line(tmp_path):
    broken = tmp_path / "broken" / "opentelemetry"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libgrpc.so: wrong ELF class', name='opentelemetry')")
    with cluster(tmp_path, env={"PYTHONPATH": str(broken.parent)}, workers=1) as processes:
        assert processes.client.submit(sum, [1, 2]).result() == 3
        log = processes.scheduler.log
    (line,) = our_errors(log)
    assert "dask-otel is off: cannot import opentelemetry (ImportError: libgrpc.so: wrong ELF class)" in line
    assert "pip install --force-reinstall dask-otel" in line

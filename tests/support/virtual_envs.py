"""Virtual environments that differ from that of the tests. Nothing is downloaded: they link to what others have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from importlib.metadata import distributions
from pathlib import Path

import pytest

import dask_otel
from support.backends import skip

#: What is tested: the checkout, or what is installed.
PACKAGE = Path(dask_otel.__file__).parent


def other_python() -> str:
    """The interpreter of an environment with another version of Python; without it the test is skipped.

    In CI it must be named, or be ``none`` where the machine has only one version.
    """
    python = os.environ.get("DASK_OTEL_TEST_OTHER_PYTHON")
    if python == "none":
        pytest.skip("this machine has one version of Python")
    if not python:
        skip(
            "needs another Python: set DASK_OTEL_TEST_OTHER_PYTHON to the interpreter of an environment that has the "
            "same distributed, and in which dask-otel and opentelemetry-exporter-otlp are installed"
        )
    show = "import sys; print(*sys.version_info[:2], sep='.')"
    version = subprocess.run([python, "-c", show], check=True, capture_output=True, text=True).stdout.strip()
    assert version != f"{sys.version_info.major}.{sys.version_info.minor}", (
        "DASK_OTEL_TEST_OTHER_PYTHON is the same one"
    )
    return python


def virtual_env(
    folder: Path,
    *,
    like: str = sys.executable,
    without: Collection[str] = (),
    package: bool = True,
    files: Mapping[str, str] | None = None,
) -> str:
    """Make a virtual environment.

    Parameters
    ----------
    like
        Interpreter of the environment whose distributions, and whose Python, the new one has.
    without
        Distributions that are not installed.
    package
        Whether dask-otel is.
    files
        By path, the text of modules that differ.

    Returns
    -------
    Its interpreter.
    """
    subprocess.run([like, "-m", "venv", "--without-pip", folder], check=True)
    (target,) = folder.glob("lib/python*/site-packages")
    print_sites = "import json, site; print(json.dumps(site.getsitepackages()))"
    sites = json.loads(subprocess.run([like, "-c", print_sites], check=True, capture_output=True).stdout)
    files = files or {}
    omitted = {Path(site, name) for site in sites for name in files}
    for each in distributions(path=sites):
        if each.name in {"dask-otel", *without}:
            omitted |= {Path(str(each.locate_file(file))) for file in each.files or ()}
    for site in map(Path, sites):
        if site.is_dir():
            _link(site, target, omitted)
    if package:
        _link(PACKAGE, target / PACKAGE.name, {PACKAGE.parent / name for name in files})
    for name, text in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)
    return str(folder / "bin/python")


def _link(source: Path, target: Path, omitted: Collection[Path]) -> None:
    """Link to all that a folder has, except some files; folders that are empty without them are not made."""
    split = {folder for path in omitted for folder in path.parents}
    for path in source.iterdir():
        if path in omitted or path.name == "__pycache__" or (target / path.name).exists():
            continue
        if path in split:
            _link(path, target / path.name, omitted)
        else:
            target.mkdir(parents=True, exist_ok=True)
            (target / path.name).symlink_to(path)

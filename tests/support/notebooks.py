"""A notebook in Jupyter's own kernel."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.environment import environment

#: In a process of its own, as Jupyter's event loop would stay open.
_RUN = """
import json, sys

from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

notebook = new_notebook(cells=[new_code_cell(cell) for cell in json.loads(sys.argv[1])])
NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
print(json.dumps([[output.get("data", output) for output in cell.outputs] for cell in notebook.cells]))
"""


def shown_below(cells: Sequence[str], folder: Path, *before: str, **variables: str) -> list[list[dict[str, Any]]]:
    """Run a notebook; return what is shown below each cell, and saved with the notebook.

    Parameters
    ----------
    before
        A command that starts another one, as Jupyter is started with it.
    """
    done = subprocess.run(
        [*before, sys.executable, "-c", _RUN, json.dumps([*cells])],
        env=environment(variables | {"IPYTHONDIR": str(folder)}),
        cwd=folder, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

"""Write the dashboards."""

from __future__ import annotations

from pathlib import Path

from . import dashboards

FOLDER = Path(__file__).parents[1] / "dashboards"

if __name__ == "__main__":
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text, encoding="utf-8")

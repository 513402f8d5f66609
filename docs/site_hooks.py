"""Takes files from outside this folder into the site, and makes links between them work there.

MkDocs calls these functions by their names (``hooks`` in ``mkdocs.yml``). The links in the files are those of the
repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: Pages of the site by their file in the repository. A page ``README.md`` would be the site's first.
PAGES = {"README.md": "overview.md", "CHANGELOG.md": "changelog.md", "benchmarks/README.md": "benchmarks.md"}
EXAMPLES = "examples.md"
#: Of examples, by the ends of their names.
LANGUAGES = {".py": "python", ".yaml": "yaml", "": "docker"}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages, and one with the examples."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    files.append(File.generated(config, EXAMPLES, content=_examples()))
    return files


def _examples() -> str:
    """Return a page with the text of each example: links to files of code would be downloads."""
    parts = [
        "# Examples",
        "These are the files in the repository's folder `examples`. "
        "[Recipes](recipes.md) says how to use them, and what the tests run.",
    ]
    for path in sorted((ROOT / "examples").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name = path.relative_to(ROOT / "examples").as_posix()
            text = path.read_text(encoding="utf-8").rstrip()
            parts += [f"## {name} {{: #{_anchor(name)} }}", f"```{LANGUAGES[path.suffix]}\n{text}\n```"]
    return "\n\n".join(parts)


def _anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name).lower()


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Write links for the site."""
    if page.file.src_uri == EXAMPLES:
        return markdown
    path = {made: path for path, made in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = (ROOT / path).parent
    return re.sub(r"(\]\()([^)#\s]*)", lambda match: match[1] + _in_site(match[2], folder), markdown)


def _in_site(target: str, folder: Path) -> str:
    if not target or "://" in target or target.startswith("mailto:"):
        return target
    path = (folder / target).resolve().relative_to(ROOT).as_posix()
    if path.startswith("examples/"):
        return f"{EXAMPLES}#{_anchor(path.removeprefix('examples/'))}"
    return PAGES.get(path, path.removeprefix("docs/"))

"""Build hook: every notebook of `tutorials/` becomes a page, with the outputs it was saved with.

Nothing is run here; `make tutorials` does that. Links from a tutorial to a page of these docs are written as seen from
`docs/tutorials/`.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

__all__ = ["on_files", "page"]

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"


def page(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """Markdown of a notebook, and its pictures by the names under which the text shows them."""
    text, resources = MarkdownExporter().from_filename(str(notebook))
    pictures = {}
    for name, content in resources["outputs"].items():
        unique = f"{notebook.stem}-{name}"
        text = text.replace(f"]({name})", f"]({unique})")
        pictures[unique] = content
    return text, pictures


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and the pictures to what is built."""
    for notebook in sorted(TUTORIALS.glob("*.ipynb")):
        text, pictures = page(notebook)
        files.append(File.generated(config, f"tutorials/{notebook.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files

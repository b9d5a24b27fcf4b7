"""MkDocs hook: pages link to files of the repository, which the site carries along.

README.md is the start page. Links are written as GitHub follows them; what they lead to outside
docs/ becomes a file of the site under repository/, and a link to a folder becomes plain text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_carried: dict[str, Path] = {}


def on_files(files: Files, config: Any) -> Files:
    """Add the start page, and whatever the pages link to outside docs/."""
    texts = {"index.md": ("", (ROOT / "README.md").read_text(encoding="utf-8"))}
    for file in files.documentation_pages():
        texts[file.src_uri] = ("docs", file.content_string)
    for name, (folder, text) in texts.items():
        for match in LINK.finditer(text):
            target = _outside(match[3], folder)
            if target is not None and target.is_file():
                _carried[_place(target)] = target
        if name == "index.md":
            files.append(File.generated(config, name, content=text))
    for place, path in _carried.items():
        files.append(File.generated(config, place, content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links as the site needs them."""
    folder = "" if page.file.src_uri == "index.md" else "docs"

    def rewritten(match: re.Match[str]) -> str:
        image, text, link, anchor = match[1], match[2], match[3], match[4] or ""
        target = _outside(link, folder)
        if target is not None:
            return f"[{text}]({_place(target)})" if target.is_file() else text
        return f"{image}[{text}]({link.removeprefix('docs/') if not folder else link}{anchor})"

    return LINK.sub(rewritten, markdown)


def _outside(link: str, folder: str) -> Path | None:
    """The file or folder that a link leads to, if that lies outside docs/."""
    if re.match(r"[a-z]+:", link):
        return None
    target = (ROOT / folder / link).resolve()
    return None if target.is_relative_to(ROOT / "docs") else target


def _place(target: Path) -> str:
    """Where the site carries a file: Markdown and Python as text, to be read and not rendered."""
    path = target.relative_to(ROOT)
    ending = ".txt" if target.suffix in ("", ".md", ".py", ".yml") else ""
    return f"repository/{path}{ending}"

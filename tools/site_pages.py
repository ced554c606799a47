"""A hook of mkdocs: the repository's Markdown under its own paths, so that links hold there too.

What a page links to and the site does not have (a test, a source file) stays as text. A link to
what is nowhere is left alone, and mkdocs, which is strict here, fails on it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
SHOWN = (
    "*.md",
    "docs/**/*.md",
    "kernels/**/*.md",
    "bench/README.md",
    "tests/README.md",
    "docs/**/*.svg",
    "kernels/**/*.svg",
    "kernels/**/*.png",
    "bench/results/**/*.png",
)
FENCED = re.compile(r"^(`{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for path in sorted({path for pattern in SHOWN for path in ROOT.glob(pattern)}):
        relative = path.relative_to(ROOT).as_posix()
        files.append(File(relative, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    folder = posixpath.dirname(page.file.src_uri)

    def unlinked(match: re.Match[str]) -> str:
        text, target, _ = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if files.get_file_from_path(path) is None and (ROOT / path).exists():
            return text
        return match[0]

    parts, end = [], 0
    for fence in FENCED.finditer(markdown):
        parts += [LINK.sub(unlinked, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(unlinked, markdown[end:])])

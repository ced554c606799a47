"""Pairs of texts that belong together, from the docstrings of Python's own standard library.

A docstring's first paragraph says what the thing does; the rest explains it. Finding the rest from
the first paragraph is a small but real retrieval task whose text every Python installation carries.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Tests and vendored or generated trees: not the library's documentation.
SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "ensurepip",
        "idlelib",
        "lib-dynload",
        "lib2to3",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)
QUERY_CHARACTERS = (15, 300)
QUERY_WORDS = 3
DOCUMENT_CHARACTERS = 40
# MiniLM reads 256 tokens, about this many characters; what it cannot read is not kept.
DOCUMENT_CUT = 1000


@dataclass(frozen=True)
class Pair:
    """One query, the document that answers it, and where both stand (``file.py:name``)."""

    query: str
    document: str
    source: str = ""


def standard_library() -> Path:
    """The folder of this Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def source_files(library: Path) -> list[Path]:
    """Every module of the library whose docstrings count, in a fixed order."""
    files = [
        file
        for file in library.rglob("*.py")
        if not any(
            part in SKIPPED_FOLDERS or part.startswith("config-")
            for part in file.relative_to(library).parts
        )
    ]
    return sorted(files, key=lambda file: file.relative_to(library).as_posix())


def docstring_pairs(
    library: Path, on_file: Callable[[int, int], None] | None = None
) -> Iterator[Pair]:
    """(first paragraph, rest) of every docstring that has both, in the order of the source.

    The files are parsed, never imported. ``on_file(done, total)`` is called after each of them.
    """
    files = source_files(library)
    for done, file in enumerate(files, 1):
        name = file.relative_to(library).as_posix()
        for node in _documented_nodes(file):
            docstring = ast.get_docstring(node) or ""
            paragraphs = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)
            if len(paragraphs) == 2:
                yield Pair(
                    query=_one_line(paragraphs[0]),
                    document=_one_line(paragraphs[1]),
                    source=f"{name}:{getattr(node, 'name', '')}".rstrip(":"),
                )
        if on_file is not None:
            on_file(done, len(files))


def clean(pairs: Iterable[Pair], *, document_words: int = 6) -> list[Pair]:
    """Drop what is too short to mean anything, doctest-only texts, and exact repetitions.

    Parameters
    ----------
    pairs
        Candidates in a fixed order: of two equal texts the first is kept.
    document_words
        Words of prose (outside doctest prompts) a document needs.
    """
    kept: list[Pair] = []
    queries: set[str] = set()
    documents: set[str] = set()
    for pair in pairs:
        document = cut(pair.document, DOCUMENT_CUT)
        if not QUERY_CHARACTERS[0] <= len(pair.query) <= QUERY_CHARACTERS[1]:
            continue
        if len(prose_words(pair.query)) < QUERY_WORDS:
            continue
        if len(document) < DOCUMENT_CHARACTERS or len(prose_words(document)) < document_words:
            continue
        query_key, document_key = _key(pair.query), _key(document)
        if query_key in queries or document_key in documents:
            continue
        queries.add(query_key)
        documents.add(document_key)
        kept.append(Pair(pair.query, document, pair.source))
    return kept


def drop_near_duplicates(pairs: Iterable[Pair], *, overlap: float = 0.8) -> list[Pair]:
    """Keep a pair only if no kept query or document shares more than ``overlap`` of its words.

    The overlap of two texts is |A ∩ B| / |A ∪ B| over their sets of words (Jaccard).
    """
    kept: list[Pair] = []
    seen: list[tuple[set[str], set[str]]] = []
    for pair in pairs:
        query, document = set(_key(pair.query).split()), set(_key(pair.document).split())
        if any(
            _jaccard(document, other_document) > overlap or _jaccard(query, other_query) > overlap
            for other_query, other_document in seen
        ):
            continue
        seen.append((query, document))
        kept.append(pair)
    return kept


def prose_words(text: str) -> list[str]:
    """Words of two letters or more, up to the first doctest prompt."""
    return re.findall(r"[A-Za-z]{2,}", text.split(">>>", 1)[0])


def cut(text: str, characters: int) -> str:
    """At most ``characters`` of the text, ending at a word."""
    if len(text) <= characters:
        return text
    return text[: characters + 1].rsplit(" ", 1)[0][:characters]


def _documented_nodes(
    file: Path,
) -> list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning, DeprecationWarning: not our source
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []  # templates and samples of broken code are part of some installations
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return sorted(nodes, key=lambda node: getattr(node, "lineno", 0))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _key(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _jaccard(a: set[str], b: set[str]) -> float:
    common = len(a & b)
    return common / (len(a) + len(b) - common) if common else 0.0

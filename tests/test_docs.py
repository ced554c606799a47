"""Everything the documentation shows runs, and every public name is in it.

The blocks of a page run one after the other in one namespace. What a page needs and need not show
is in a comment, `<!-- invisible-code-block: python … -->`. A block whose title begins with "Not
run" is not, and is counted in NOT_RUN.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sybil import Document, Example, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer

import simtile

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("kernels/**/*.md")]
)
# page: how many blocks are not run; each says why in its title
NOT_RUN = {"docs/mteb.md": 1, "docs/quick-start.md": 1}
MODULES = ("simtile.nn", "simtile.metrics", "simtile.distributed", "simtile.batches")
DROP_INS = sorted(
    f"simtile.integrations.{path.stem}"
    for path in (ROOT / "python" / "simtile" / "integrations").glob("[a-z]*.py")
)

fenced = RawFencedCodeBlockLexer(re.compile(r"(?P<info>(?:python|py)\b[^\n]*)\n"))
hidden = DirectiveInHTMLCommentLexer("invisible-code-block", "python")
evaluate = PythonEvaluator()


def blocks(document: Document) -> Iterator[Region]:
    """Blocks of Python, shown or not."""
    for region in (*fenced(document), *hidden(document)):
        region.parsed = region.lexemes["source"]
        region.evaluator = run_unless_marked
        yield region


def run_unless_marked(example: Example) -> None:
    if not is_not_run(example):
        evaluate(example)


def is_not_run(example: Example) -> bool:
    info = example.region.lexemes.get("info", "python")
    # On the site the title stands above the block.
    assert re.fullmatch(r'python( title="(Not run: [^"]{8,}|[^"]+)")?', info), info
    return 'title="Not run: ' in info


def parsed(page: str) -> list[Example]:
    document = Document.parse(str(ROOT / page), blocks)
    return list(document.examples())


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = parsed(page)
    assert sum(map(is_not_run, examples)) == NOT_RUN.get(page, 0)
    monkeypatch.chdir(tmp_path)  # where blocks write
    for example in examples:
        example.evaluate()


def test_pages_that_are_not_run_are_there() -> None:
    assert set(NOT_RUN) <= set(PAGES)


def test_a_mistake_in_a_block_is_found(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(
        "text\n\n```python\nx = 1\n```\n\n- item\n\n  ```python\n  assert x == 2\n  ```\n"
    )
    first, second = Document.parse(str(path), blocks).examples()
    first.evaluate()
    with pytest.raises(AssertionError) as caught:
        second.evaluate()
    assert caught.traceback[-1].lineno + 1 == 10


def public() -> dict[str, Any]:
    """What may be imported, by name."""
    found = {f"simtile.{name}": getattr(simtile, name) for name in simtile.__all__}
    for name in MODULES:
        module = importlib.import_module(name)
        found |= {f"{name}.{one}": getattr(module, one) for one in module.__all__}
    return {
        name: value
        for name, value in found.items()
        if not isinstance(value, ModuleType) and name != "simtile.__version__"
    }


@pytest.mark.parametrize("name", sorted(public()))
def test_docstring_has_an_example_that_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    value = public()[name]
    # The methods' too. Nothing is imported for an example that it does not import itself.
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = finder.find(value, name, module=inspect.getmodule(value), globs={})
    assert tests
    assert any(test.name == name for test in tests), f"{name} has no example"
    for test in tests:
        doctest.DebugRunner().run(test)


def documented() -> tuple[dict[str, int], set[str]]:
    """By heading, identities of what the reference's pages show; and its whole modules."""
    names, modules = {}, set()
    for path in ROOT.glob("docs/api/*.md"):
        for shown in re.finditer(
            r"^::: (\S+)\n(?:    options:\n      heading: (\S+)\n)?", path.read_text(), re.M
        ):
            module, _, name = shown[1].rpartition(".")
            if shown[1].startswith("simtile.integrations."):
                modules.add(shown[1])
            else:
                heading = shown[2] or shown[1]
                assert heading not in names, f"{heading} twice"
                names[heading] = id(getattr(importlib.import_module(module), name))
    return names, modules


def test_every_public_name_is_in_the_reference() -> None:
    names, modules = documented()
    wanted = {name: id(value) for name, value in public().items()}
    missing = {
        name
        for name, one in wanted.items()
        if names.get(name) != one and one not in {names.get(other) for other in aliases(name)}
    }
    assert not missing
    assert modules == set(DROP_INS)


def aliases(name: str) -> list[str]:
    """simtile.batches.audit_batch is shown as simtile.audit_batch."""
    return [f"simtile.{name.rpartition('.')[2]}"]


def test_every_drop_in_is_told_of() -> None:
    """Each module stands on a page that says what to change."""
    pages = "".join(path.read_text() for path in ROOT.glob("docs/*.md"))
    untold = [
        name
        for name in DROP_INS
        if not re.search(rf"{re.escape(name)}\b|{name.rpartition('.')[2]}\b", pages)
    ]
    assert not untold

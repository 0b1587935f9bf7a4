"""Text files are read and written in UTF-8 everywhere, whatever the machine's locale."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT_CALLS = ("open", "fdopen", "read_text", "write_text", "NamedTemporaryFile", "TextIOWrapper")
ENCODING_POSITION = {"open": 2, "fdopen": 3, "read_text": 0, "write_text": 1}
"""Where ``encoding`` stands if it is not named; one less for a method ``open``."""
BINARY_OPENERS = ("os", "tarfile", "zipfile", "archive", "Image", "gzip", "lzma", "bz2")
"""Whose ``open`` is not the built-in one, and opens bytes unless told otherwise."""


def unclear(source: str) -> Iterator[int]:
    """Yield the lines that open a text file without an encoding."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        if name not in TEXT_CALLS or (not method and name in ("read_text", "write_text")):
            continue  # a function of our own: bakeoff.core.safe_read.read_text
        owner = getattr(node.func.value, "id", "") if method else ""
        if name == "open" and owner in BINARY_OPENERS:
            continue
        keywords = {k.arg: k.value for k in node.keywords}
        place = ENCODING_POSITION.get(name, 9) - (method and name == "open")
        if "encoding" in keywords or len(node.args) > place:
            continue
        mode = keywords.get("mode") or next(
            iter(node.args[not method and name != "fdopen" :]), None
        )
        modes = [a.value for a in (*node.args, mode) if isinstance(a, ast.Constant)]
        if name in ("open", "fdopen", "NamedTemporaryFile") and any(
            isinstance(m, str) and "b" in m and len(m) < 4 for m in modes
        ):
            continue
        yield node.lineno


def test_every_text_file_names_its_encoding() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("src", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in unclear(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_missing_encoding_is_noticed() -> None:
    wrong = ("open(p)", "p.open()", "p.open('w')", "p.read_text()", "p.write_text(t)")
    right = (
        "open(p, 'rb')", "p.open('wb')", "p.open(encoding='utf-8')", "p.read_text('utf-8')",
        "p.write_text(t, encoding='utf-8')", "read_text(p, 9)", "os.open(p, 0)",
    )  # fmt: skip
    assert [list(unclear(code)) for code in wrong] == [[1]] * len(wrong)
    assert [list(unclear(code)) for code in right] == [[]] * len(right)

"""Nothing in the project needs a Python newer than 3.11.0, which it promises to run on.

`vermin` (in `make check`) knows what came with a minor version. It knows neither what came with a
patch release, such as `tarfile`'s `filter=` with 3.11.4, nor a method of an object whose type is
not written down. Those are listed here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for folder in ("src", "tests", "benchmarks", "scripts", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
KEYWORDS = {
    ("extractall", "filter"): "3.11.4",
    ("extract", "filter"): "3.11.4",
    ("unpack_archive", "filter"): "3.11.4",
    ("getaddresses", "strict"): "3.11.10",
    ("parseaddr", "strict"): "3.11.10",
    ("NamedTemporaryFile", "delete_on_close"): "3.12",
    ("TemporaryDirectory", "delete"): "3.12",
    ("batched", "strict"): "3.13",
    ("connect", "autocommit"): "3.12",
    ("exists", "follow_symlinks"): "3.12",
    ("glob", "case_sensitive"): "3.12",
    ("rglob", "case_sensitive"): "3.12",
    ("match", "case_sensitive"): "3.12",
    ("glob", "recurse_symlinks"): "3.13",
    ("rglob", "recurse_symlinks"): "3.13",
    ("is_dir", "follow_symlinks"): "3.13",
    ("is_file", "follow_symlinks"): "3.13",
    ("map", "strict"): "3.14",
    ("read_text", "newline"): "3.13",
    ("relative_to", "walk_up"): "3.12",
    ("rmtree", "onexc"): "3.12",
    ("shutdown", "immediate"): "3.13",
    ("add_argument", "deprecated"): "3.13",
}
"""Keyword of a call: the Python that it came with."""
METHODS = {
    "data_filter": "3.11.4",
    "tar_filter": "3.11.4",
    "fully_trusted_filter": "3.11.4",
    "extraction_filter": "3.11.4",
    "AbsoluteLinkError": "3.11.4",
    "AbsolutePathError": "3.11.4",
    "FilterError": "3.11.4",
    "LinkOutsideDestinationError": "3.11.4",
    "OutsideDestinationError": "3.11.4",
    "SpecialFileError": "3.11.4",
    "pickle_by_enum_name": "3.11.6",
    "GetReparseDeferralEnabled": "3.11.9",
    "SetReparseDeferralEnabled": "3.11.9",
    "eager_task_factory": "3.12",
    "from_uri": "3.13",
    "full_match": "3.13",
    "getconfig": "3.12",
    "is_junction": "3.12",
    "kill_workers": "3.14",
    "process_cpu_count": "3.13",
    "setconfig": "3.12",
    "terminate_workers": "3.14",
    "with_segments": "3.12",
}
"""Attribute: the Python that it came with."""


def newer_features(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of what Python 3.11.0 lacks, judged by name only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield node.lineno, f"{node.attr} (Python {METHODS[node.attr]})"
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            for keyword in node.keywords:
                if since := KEYWORDS.get((name or "", keyword.arg or "")):
                    yield node.lineno, f"{name}({keyword.arg}=) (Python {since})"
        if isinstance(node, ast.Attribute) and node.attr == "walk" and _is_path(node.value):
            yield node.lineno, "Path.walk (Python 3.12)"


def _is_path(node: ast.expr) -> bool:
    """Return whether an expression is `Path(...)` or a name that is used for paths."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "Path"
    return isinstance(node, ast.Name) and node.id in ("path", "folder", "root", "target", "source")


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "scripts", "examples"])
def test_no_newer_api(folder: str) -> None:
    """No call and no attribute in the project is newer than Python 3.11.0."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in FILES
        if path.is_relative_to(ROOT / folder)
        for line, what in newer_features(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "tar.extractall(folder, filter='data')",
        "shutil.unpack_archive(path, folder, filter='data')",
        "tar.extraction_filter = tarfile.data_filter",
        "shutil.rmtree(folder, onexc=print)",
        "Path('a').relative_to(other, walk_up=True)",
        "for folder, _, names in path.walk(): pass",
    ],
)
def test_newer_api_is_found(source: str) -> None:
    assert list(newer_features(ast.parse(source)))

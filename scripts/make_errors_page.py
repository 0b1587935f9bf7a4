"""Write ``docs/errors.md``: the code, cause and hint of every error and issue, from the source.

Run it after a cause or a hint has changed, and read what changed: the page is where hints are
reviewed. A test compares the page with its output and checks every hint.

    python scripts/make_errors_page.py
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "bakeoff"
PAGE = ROOT / "docs" / "errors.md"
EXIT_CODES = {
    "UsageError": "2", "PreflightError": "3", "LockedError": "5", "EnvironmentProblem": "6",
    "Interrupted": "130", "Terminated": "143", "BakeoffError": "1",
}  # fmt: skip
ISSUES = ("DataIssue", "DataIssue.at", "UnreadableConversation", "UnusableConversation")
OTHERS = ("StudyProblem",)
GAP = "…"
"""Stands for a value in a text that is known only when the error is raised."""
MAX_CAUSE = 220

SECURITY = "tests/security/test_security.py"
NAMES = "tests/storage/test_folder_names.py"
READS = "tests/study/test_test_reads.py"
ADVICE = "tests/cli/test_advice.py"
EXPORT = "tests/training/test_export_weights.py"
FOLLOWED: tuple[tuple[str, str, str], ...] = (
    ("base-wants-code", "trust_remote_code", f"{SECURITY}::test_trust_bound_to_base_version"),
    ("cannot-convert", "--as", f"{EXPORT}::test_hint_of_refused_form_works"),
    ("cannot-merge", "bakeoff methods", f"{EXPORT}::test_hint_of_refused_form_works"),
    ("column-malformed", "--column", f"{ADVICE}::test_columns_of_a_run"),
    ("csv-without-out", "--out", f"{ADVICE}::test_report_options"),
    ("data-bom", "sed", f"{ADVICE}::test_byte_order_marks"),
    ("data-not-found", "on the hub", f"{ADVICE}::test_hub_id_without_prefix"),
    ("data-not-utf8", "cp1252", "tests/data/test_file_formats.py::test_windows_encoding_asked"),
    ("database-damaged", "--repair", f"{ADVICE}::test_damaged_database_repaired"),
    ("database-foreign", "--out", f"{ADVICE}::test_new_folder_for_foreign_database"),
    ("export-differs", "--force", f"{EXPORT}::test_changed_weights_need_force"),
    ("folder-link", "rm", f"{ADVICE}::test_link"),
    ("folder-taken", "--out", f"{EXPORT}::test_new_folder_as_the_hint_says"),
    ("metric-function-unnamed", "metric =", f"{ADVICE}::test_metric_function"),
    ("no-method-named", "--toml", f"{ADVICE}::test_method_file"),
    ("nothing-to-export", "exports one of", f"{EXPORT}::test_command_exports_recommended_method"),
    ("origins-broken", "rm", f"{ADVICE}::test_origins"),
    ("out-without-hf-json", "--format", f"{ADVICE}::test_report_options"),
    ("path-malformed", "without `hub:`", f"{ADVICE}::test_pattern_folder"),
    ("study-differs", "--fork", "tests/study/test_fork.py::test_command_line_forks"),
    ("study-locked", "bakeoff status", f"{NAMES}::test_hints_quote_folders"),
    ("study-not-found", "bakeoff init", f"{ADVICE}::test_study_file"),
    ("study-unreadable", "UTF-8", f"{ADVICE}::test_study_in_another_encoding"),
    ("table-without-csv", "--format", f"{ADVICE}::test_report_options"),
    ("task-unclear", "--column", f"{ADVICE}::test_columns_of_a_run"),
    ("test-already-read", "--again", f"{READS}::test_command_line_requires_again"),
    ("trust-unpinned", "revision", f"{SECURITY}::test_hub_trust_needs_commit"),
    ("unknown-method", "did you mean", f"{ADVICE}::test_misspelt_names"),
)  # fmt: skip
"""Code, a part of the hint, and the test that follows it; all other hints were read."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Hint(NamedTuple):
    """One construction of an error or issue: where it is, its code, its cause and its hint."""

    module: str
    line: int
    kind: str
    code: str
    cause: str
    text: str


def collect() -> list[Hint]:
    """Return every error and issue that the source constructs, in the order of their codes."""
    found = [
        hint
        for path in sorted(SOURCE.rglob("*.py"))
        for hint in _Module(path.relative_to(SOURCE).as_posix(), path.read_text("utf-8")).hints()
    ]
    return sorted(dict.fromkeys(found), key=lambda h: (h.code, h.module, h.line))


class _Module:
    """One module's source: its constants, its functions and who calls them."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.tree = ast.parse(text)
        self.parents = {c: p for p in ast.walk(self.tree) for c in ast.iter_child_nodes(p)}
        self.calls = [n for n in ast.walk(self.tree) if isinstance(n, ast.Call)]

    def hints(self) -> Iterator[Hint]:
        """Yield what the module constructs."""
        for call in self.calls:
            name = _name(call.func)
            kind = name if name in ISSUES else name.rpartition(".")[2]
            if kind in (*EXIT_CODES, *ISSUES, *OTHERS):
                yield from self._of_call(call, kind)
            elif kind == "unknown_name":
                for code in self._texts(call.args[0], _Place(call)):
                    what = self._texts(call.args[1], _Place(call))[0]
                    known = f"did you mean '{GAP}'? Known: {GAP}."
                    cause = f"No {what} named '{GAP}'."
                    yield Hint(self.name, call.lineno, "UsageError", code, cause, known)

    def _of_call(self, call: ast.Call, kind: str) -> Iterator[Hint]:
        given = dict(zip(("code", "cause", "try_"), call.args, strict=False))
        given |= {{"what": "cause"}.get(k.arg or "", k.arg or ""): k.value for k in call.keywords}
        if not {"code", "cause", "try_"} <= given.keys():
            return  # made from another one: cls(...), kind(error["code"], ...)
        for place in self._callers(call, [given[k] for k in ("code", "cause", "try_")]):
            cause = self._texts(given["cause"], place)[0]
            for code in self._texts(given["code"], place):
                for hint in self._texts(given["try_"], place):
                    if code != GAP:
                        yield Hint(self.name, call.lineno, kind, code, cause, hint or GAP)

    def _callers(self, call: ast.Call, texts: list[ast.expr]) -> list[_Place]:
        """Return the calls of the function that builds an error from its parameters."""
        function = self._function(call)
        used = {n.id for text in texts for n in ast.walk(text) if isinstance(n, ast.Name)}
        if function is None or not used & {a.arg for a in _parameters(function)}:
            return [_Place(call)]
        names = [a.arg for a in _parameters(function)]
        shift = names[0] in ("self", "cls")
        places = []
        for caller in self.calls:
            if _name(caller.func).rpartition(".")[2] == function.name:
                given = dict(zip(names[shift:], caller.args, strict=False))
                given |= {k.arg: k.value for k in caller.keywords if k.arg}
                places.append(_Place(call, given, caller))
        return places or [_Place(call)]

    def _texts(self, node: ast.expr, at: _Place, depth: int = 0) -> list[str]:
        """Return the texts that an expression may have; values are ``GAP``."""
        if isinstance(node, ast.Constant):
            return [GAP if node.value is None else str(node.value)]
        if isinstance(node, ast.JoinedStr):
            return _product([self._texts(v, at, depth) for v in node.values])
        if isinstance(node, ast.FormattedValue):
            inner = node.value
            simple = isinstance(inner, ast.Name | ast.IfExp) and node.format_spec is None
            return self._texts(inner, at, depth + 1) if simple and depth < 3 else [GAP]
        if isinstance(node, ast.IfExp):
            return self._texts(node.body, at, depth) + self._texts(node.orelse, at, depth)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return _product([self._texts(node.left, at, depth), self._texts(node.right, at, depth)])
        if isinstance(node, ast.Name) and depth < 4:
            return self._named(node.id, at, depth + 1) or [GAP]
        return [GAP]

    def _named(self, name: str, at: _Place, depth: int) -> list[str]:
        """Return the texts of a name: an argument, assigned in its function, or a constant."""
        if at.given is not None and at.caller is not None and name in at.given:
            return self._texts(at.given[name], _Place(at.caller), depth)
        function = self._function(at.call)
        values = [] if function is None else self._assigned(name, function, at.call)
        if not values:
            values = [v for t, v, _ in _assignments(self.tree, top=True) if t == name]
        texts = [t for v in values for t in self._texts(v, at, depth)]
        return list(dict.fromkeys(t or GAP for t in texts))  # an empty text is added to later

    def _assigned(self, name: str, function: Function, call: ast.Call) -> list[ast.expr]:
        """Return the values that a name may have at a call: the last one, and one per branch."""
        before = [
            (value, node)
            for target, value, node in _assignments(function)
            if target == name and node.lineno <= call.lineno
        ]
        values: list[ast.expr] = []
        around = list(self._ancestors(call))
        ending: ast.expr | None = None
        for value, node in sorted(before, key=lambda pair: -pair[1].lineno):
            whole = value if ending is None else ast.BinOp(value, ast.Add(), ending)
            if isinstance(node, ast.AugAssign):
                ending = whole
                continue
            values.append(whole)
            if self.parents[node] in around:
                break  # whatever was assigned earlier is gone
        return values

    def _ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        current = self.parents.get(node)
        while current is not None:
            yield current
            current = self.parents.get(current)

    def _function(self, node: ast.AST) -> Function | None:
        return next((n for n in self._ancestors(node) if isinstance(n, Function)), None)


class _Place(NamedTuple):
    """Where an error is built, with the arguments of one call of the function that builds it."""

    call: ast.Call
    given: dict[str, ast.expr] | None = None
    caller: ast.Call | None = None


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _parameters(function: Function) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def _assignments(
    scope: ast.AST, top: bool = False
) -> Iterator[tuple[str, ast.expr, ast.stmt | ast.expr]]:
    for node in ast.iter_child_nodes(scope) if top else ast.walk(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value, node
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    for name, value in zip(target.elts, node.value.elts, strict=False):
                        if isinstance(name, ast.Name):
                            yield name.id, value, node
        elif (
            isinstance(node, ast.AnnAssign | ast.NamedExpr | ast.AugAssign)
            and node.value is not None
            and isinstance(node.target, ast.Name)
        ):
            yield node.target.id, node.value, node


def _product(parts: Iterable[list[str]]) -> list[str]:
    texts = [""]
    for part in parts:
        texts = [t + p for t in texts for p in part][:8]
    return texts


def page(hints: Iterable[Hint]) -> str:
    """Return the page."""
    rows: dict[tuple[str, str, str], Hint] = {}
    for hint in hints:
        rows.setdefault((hint.code, _cell(hint.cause), _cell(hint.text)), hint)
    lines = [_row(hint) for hint in rows.values()]
    return _HEAD + "\n".join(lines) + "\n"


def _row(hint: Hint) -> str:
    exit_code = EXIT_CODES.get(hint.kind, "-" if hint.kind in OTHERS else "3 or warning")
    cause = _cell(hint.cause)
    if len(cause) > MAX_CAUSE:
        cause = f"{cause[: MAX_CAUSE - 1].rstrip()}…"
        cause += "`" if cause.count("`") % 2 else ""
    tests = [test for code, part, test in FOLLOWED if code == hint.code and part in hint.text]
    test = f"`{tests[0]}`" if tests else "-"
    return f"| `{hint.code}` | {exit_code} | {cause} | {_cell(hint.text)} | {test} |"


def _cell(text: str) -> str:
    text = re.sub(rf"{GAP}(?:\W?{GAP})+", GAP, " ".join(text.split()))
    return text.replace("|", "\\|").replace("<", "\\<").strip() or GAP


_HEAD = """# Error codes

Every error has a stable code, a cause and one hint (`Try:`). In the texts below, … stands for
values known only when the error is raised. Issues of rows, tokens and base have codes too: some of
them stop the study (exit code 3), the others are warnings.

| exit code | meaning |
|---|---|
| 1 | a worker failed |
| 2 | the study file, an option or a name is wrong |
| 3 | data, base or folder is unusable; nothing was trained |
| 5 | another process is running the study |
| 6 | the machine lacks something: disk, permission, network or a package |

`scripts/make_errors_page.py` writes this page from the source. Tests check every hint: a command
must be a command of bakeoff with its options, a key one of the study file, an extra one of the
package, and a page must exist. The last column names the test that follows a hint to its end; the
other hints were read.

| code | exit code | cause | hint | followed by |
|---|---|---|---|---|
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(collect()), encoding="utf-8")


if __name__ == "__main__":
    main()

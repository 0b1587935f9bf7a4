"""Is there a study file or a row of data that makes bakeoff crash? Thousands of them, counted.

    python benchmarks/fuzz.py --examples 10000 --out fuzz.json

It writes malformed files and runs the command line on them, in
this process, up to the point where a worker would be started; ``--whole`` examples go on through a
worker's checks on a tiny base. Nothing is trained. Whatever is in a file, a user must get exit code
0, 2, 3 or 6, a code in brackets, a cause and a way out; a traceback or exit code 1 is a fault of
bakeoff's and is printed with the files that did it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import datetime
import io
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import tomli_w
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bakeoff import cli
from bakeoff.core import jobs
from bakeoff.core.errors import PreflightError
from bakeoff.study import remote
from bakeoff.study.setup import base_model, open_study

HF = Path(__file__).parent.parent / "tests" / "data" / "hf"
"""Real files of ``method_comparison``, made small."""
GOOD = (0, 2, 3, 6)
ACCEPTED = "fuzz-accepted"
STUDY: dict[str, Any] = {
    "name": "fuzzed",
    "base": {"model": "base"},
    "data": {"train": "rows.jsonl", "columns": {"prompt": "q", "completion": "a"}},
    "task": {"kind": "sft", "max_length": 32},
    "methods": {"control": "lora", "contenders": ["ia3", "mine"]},
    "method": {"mine": {"kind": "peft", "path": "adapter_config.json", "config": {}}},
    "budget": {"steps": 20, "settings": 2, "seeds": 2},
    "engine": {"executor": "inline", "device": "cpu", "precision": "fp32", "threads": 1},
}
"""A study that is accepted; every example is some steps away from it."""
OPTIONAL: dict[str, tuple[str, ...]] = {
    "": ("seed", "verdict", "forgetting"),
    "base": ("revision", "quantize", "quantizer", "trust_remote_code"),
    "data": (
        "validation", "test", "config", "revision", "group", "validation_fraction",
        "test_fraction", "limit", "rename",
    ),
    "task": (
        "options", "metric", "metric_options", "margin", "head_learning_rate", "max_new_tokens",
        "chat", "system", "chat_template", "chat_template_kwargs",
    ),
    "budget": (
        "match", "parameters", "hours", "batch_size", "tune", "race", "rungs", "extend",
        "select_on", "warmup", "decay", "weight_decay", "clip", "validations",
    ),
    "engine": (
        "workers", "lanes", "packing", "loss", "compile", "graphs", "micro_tokens", "checkpointing",
        "evaluation_batch_size",
    ),
    "method": ("lora", "ia3", "full"),
}  # fmt: skip
"""Keys that the study above leaves out, by table."""
WORDS = (
    "", ".", "..", "../x", "/etc/passwd", "~x/y", "-rf", "CON", "nul.txt", "a" * 300, "a/" * 600,
    "lora", "lroa", "dora.toml", "mine.toml", "adapter_config.json", "rows.jsonl",
    "rows.csv", "base", "hub:", "hub:./x", "asset:", "asset:no/../x", "score.py:score",
    "../score.py:score", "score.py:", "sft", "classify", "choice",
    "accuracy", "exact_match", "numeric", "regex", "auto", "off", "on", "default", "all", "q",
    "{q}", "{", "{q} {a}", "{__class__}", "\x1b[31m", "\x1b]0;x\x07", "[bold]",
    "[/x]", "é\u2028\u202e",
    "</script><script>alert(1)</script>", "=1+1", "hf_abcdefghijklmnop", "1e999", "None", "\ufeff",
)  # fmt: skip

PIECES = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"[", b"[[", b"]", b"{", b'"', b'"""', b"\n", b"\r",
    b"= ", b"a.b.c = 1\n", b"9" * 5000, b"[" * 3000, b"a." * 3000 + b"b=1\n", b"\xed\xa0\x80",
    b"\\ud800", b"NaN", b"1e999",
)  # fmt: skip
"""What breaks parsers."""
_ODD_NUMBERS = st.sampled_from([0, -1, 1, 2, 2**31, 2**63 - 1, 2**63, 10**400])
_texts = st.one_of(
    st.sampled_from(WORDS),
    st.text(st.characters(codec="utf-8"), max_size=20),
)
_scalars = st.one_of(
    _texts,
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0, 1, -1, 1e-30, 1e300, 0.5]),
    st.just(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)),
    st.just(datetime.time(1, 2)),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(_texts, inner, max_size=4)
    ),
    max_leaves=8,
)
_json = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), _texts, st.text(max_size=30),
        _ODD_NUMBERS.filter(lambda n: n < 10**400),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=10,
)  # fmt: skip


@dataclasses.dataclass
class Case:
    """One example: files by name, and the command that is run on them."""

    files: dict[str, bytes]
    arguments: tuple[str, ...] = ("plan", "study.toml", "--no-time")


def _tables(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every table in a study."""
    if isinstance(value, dict):
        yield path
        for key, inner in value.items():
            yield from _tables(inner, (*path, key))


def _like(value: Any) -> st.SearchStrategy[Any]:
    """Return values of the kind that stands there, or that a key left out may take."""
    if isinstance(value, bool) or value is None:
        words = st.sampled_from(("auto", "on", "off", "all", "loss", "metric", "parameters"))
        return st.one_of(st.booleans(), st.integers(0, 40), st.floats(0, 1), words)
    if isinstance(value, int | float):
        return st.one_of(st.integers(0, 2000), st.floats(0, 1e3))
    if isinstance(value, str):
        return st.sampled_from(WORDS)
    if isinstance(value, list):
        return st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)
    return st.dictionaries(_texts, _scalars, max_size=3)


@st.composite
def changed(draw: st.DrawFn, value: dict[str, Any], optional: bool = True) -> dict[str, Any]:
    """Return a copy with a few keys removed, renamed, added, or given values of any kind."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(_tables(value))))
        table = value
        for key in path:
            table = table[key]
        known = [*table, *(OPTIONAL.get(".".join(path), ()) if optional else ())]
        key = draw(st.sampled_from(known) if known and draw(st.integers(0, 9)) else _texts)
        action = draw(st.sampled_from(("set", "set", "set", "drop", "rename")))
        if action == "set":
            table[key] = draw(_like(table.get(key)) if draw(st.booleans()) else _values)
        elif action == "drop":
            table.pop(key, None)
        elif key in table:
            table[draw(_texts)] = table.pop(key)
    return value


def _toml(value: dict[str, Any]) -> bytes:
    """Write TOML; numbers that TOML cannot say stand there as digits all the same."""
    return tomli_w.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def broken(draw: st.DrawFn, text: bytes) -> bytes:
    """Return bytes with pieces cut, doubled, replaced or put in."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        to = min(len(text), at + draw(st.integers(0, 12)))
        piece = draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from([*PIECES, text[at:to]]),
            )
        )
        text = text[:at] + piece + (text[to:] if draw(st.booleans()) else text[at:])
    return text


def good_rows() -> list[dict[str, Any]]:
    """Return rows that a study is accepted with."""
    return [{"q": f"what is {i} plus one", "a": f"it is {i + 1}"} for i in range(24)]


def _lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def files(**others: bytes) -> dict[str, bytes]:
    """Return the files of the accepted study, some of them replaced."""
    named = {name.replace("__", "."): text for name, text in others.items()}
    return {
        "study.toml": _toml(STUDY),
        "rows.jsonl": _lines(good_rows()),
        "adapter_config.json": json.dumps(ADAPTER).encode(),
        "score.py": b"def score(prediction, reference):\n    return 1.0\n",
        **named,
    }


@st.composite
def studies(draw: st.DrawFn) -> Case:
    """Study files: valid TOML that says odd things, or no TOML at all."""
    value = draw(changed(STUDY))
    try:
        text = _toml(value)
    except (ValueError, TypeError):  # what TOML cannot say at all
        text = repr(value).encode("utf-8", "replace")
    if draw(st.integers(0, 3)) == 0:
        text = draw(broken(text))
    if draw(st.integers(0, 49)) == 0:
        text = draw(st.binary(max_size=200))
    return Case(files(study__toml=text))


def _written(many: Sequence[Any], kind: str, names: Sequence[str]) -> bytes:
    if kind == "json":
        return json.dumps(many).encode()
    if kind == "jsonl":
        return _lines(many)
    mark = "," if kind == "csv" else "\t"
    cells = [r.values() if isinstance(r, dict) else [r] for r in many]
    lines = [mark.join(names), *(mark.join(map(str, row)) for row in cells)]
    return "\n".join(lines).encode("utf-8", "replace")


@st.composite
def rows(draw: st.DrawFn) -> Case:
    """Files of rows of every kind: odd values, odd shapes, odd bytes."""
    kind = draw(st.sampled_from(("jsonl", "jsonl", "json", "csv", "tsv")))
    task = draw(st.sampled_from(("sft", "sft", "chat", "classify", "choice")))
    many: list[Any] = list(good_rows())
    if task == "chat":
        turns = st.sampled_from((("user", "assistant"), ("system", "user", "assistant"), ("user",)))
        many = [{"messages": [{"role": r, "content": "hi"} for r in draw(turns)]} for _ in range(9)]
    elif task == "classify":
        many = [{"text": r["q"], "label": r["a"][-1:]} for r in many]
    elif task == "choice":
        many = [{"prompt": r["q"], "choices": ["a", "b"], "answer": 0} for r in many]
    names = tuple(many[0])[:2]
    message = st.fixed_dictionaries({"role": _texts, "content": _json})
    odd = st.one_of(
        st.fixed_dictionaries({**dict.fromkeys(names, _json)}),
        st.fixed_dictionaries({**dict.fromkeys(names, _json), names[0]: _texts, "answer": _json}),
        st.fixed_dictionaries({"messages": st.one_of(_json, st.lists(message))}),
    )
    for _ in range(draw(st.integers(0, 5))):
        row = draw(odd if draw(st.integers(0, 9)) else _json)
        many.insert(draw(st.integers(0, len(many))), row)
    text = _written(many, kind, names)
    if draw(st.integers(0, 3)) == 0:
        text = draw(broken(text))
    value = copy.deepcopy(STUDY)
    value["data"]["train"] = f"rows.{kind}"
    if draw(st.integers(0, 3)) == 0:
        value["data"].pop("columns")
    if draw(st.integers(0, 3)) == 0:
        value["data"]["group"] = "q"
    value["task"]["kind"] = "sft" if task == "chat" else task
    if task != "sft":
        value["data"].pop("columns", None)
        if draw(st.integers(0, 3)) == 0:
            value["data"]["columns"] = draw(st.dictionaries(_texts, _texts, max_size=3))
    return Case({**files(study__toml=_toml(value)), f"rows.{kind}": text})


@st.composite
def methods(draw: st.DrawFn) -> Case:
    """Adapter configs of strangers, and method files."""
    from bakeoff.methods import registry

    if draw(st.booleans()):
        leading = ("auto_mapping", "megatron_core", "tokenizer_kwargs", "corda_config", "revision")
        value = draw(changed(ADAPTER, optional=False))
        if draw(st.booleans()):
            value[draw(st.sampled_from(leading))] = draw(_json)
        text = json.dumps(value, default=str).encode()
        return Case(
            files(adapter_config__json=draw(broken(text)) if draw(st.integers(0, 3)) == 0 else text)
        )
    import tomllib

    name = draw(st.sampled_from(("lora", "ia3", "adalora", "full")))
    own = tomllib.loads(registry.read_source(name, Path()))
    value = draw(changed(own, optional=False))
    try:
        text = _toml(value)
    except (ValueError, TypeError):
        text = b"title = 1"
    if draw(st.integers(0, 3)) == 0:
        text = draw(broken(text))
    study_file = copy.deepcopy(STUDY)
    study_file["methods"]["contenders"] = ["mine.toml"]
    study_file.pop("method")
    return Case(files(study__toml=_toml(study_file), mine__toml=text))


@st.composite
def imports(draw: st.DrawFn) -> Case:
    """Result files of Hugging Face's benchmark, and its experiments."""
    results = {f"results/{p.name}": p.read_bytes() for p in (HF / "MetaMathQA").glob("lora*.json")}
    name = draw(st.sampled_from(sorted(results)))
    value = draw(changed(json.loads(results[name]), optional=False))
    text = json.dumps(value, default=str).encode()
    results[name] = draw(broken(text)) if draw(st.integers(0, 3)) == 0 else text
    if draw(st.booleans()):
        return Case(results, ("import-hf", "results", "--out", "out"))
    params = json.loads((HF / "task" / "default_training_params.json").read_text())
    own = json.dumps(draw(changed(params, optional=False)), default=str).encode()
    adapter = json.dumps(draw(changed(ADAPTER, optional=False)), default=str).encode()
    if draw(st.integers(0, 3)) == 0:
        own = draw(broken(own))
    given = {"x/training_params.json": own, "x/adapter_config.json": adapter}
    given["default.json"] = json.dumps(params).encode()
    return Case(
        {**files(), **given},
        (
            "run",
            "study.toml",
            "--hf-experiment",
            "x",
            "--hf-defaults",
            "default.json",
            "--out",
            "out",
        ),
    )


KINDS: dict[str, Callable[[], st.SearchStrategy[Case]]] = {
    "studies": studies,
    "rows": rows,
    "methods": methods,
    "imports": imports,
}


def stopping(whole: bool) -> Callable[..., dict[str, Any]]:
    """Return what stands in for ``study.call``: stops where the first worker would start."""
    real = remote.run_remote
    inline = remote.make_executor("inline", 1)

    def call(through: Any, function: str, value: dict[str, Any]) -> dict[str, Any]:
        if function == jobs.DETECT_MACHINE and not whole:
            raise PreflightError(ACCEPTED, "This study would be run.", "run it.")
        return real(inline, function, value)

    return call


@dataclasses.dataclass
class Outcome:
    """How the command ended: its exit code, the code in brackets, and all that it said."""

    exit: int
    code: str
    said: str

    @property
    def last(self) -> str:
        """The last lines of what was said."""
        return "\n".join(self.said.strip().splitlines()[-9:-2])

    @property
    def fault(self) -> bool:
        """Whether bakeoff is to blame."""
        return self.exit not in GOOD or "Traceback" in self.said or "\x1b]" in self.said


def drive(case: Case, folder: Path, whole: bool = False) -> Outcome:
    """Write a case's files into ``folder`` and run its command there, in this process."""
    for name, content in case.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    said, before = io.StringIO(), Path.cwd()
    exit_code = 0
    mask = os.umask(0o022)
    try:
        os.chdir(folder)
        with (
            mock.patch.object(open_study, "run_remote", stopping(whole)),
            mock.patch.object(sys, "argv", ["bakeoff", *case.arguments]),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            cli.main()
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        os.chdir(before)
        os.umask(mask)
        for name in case.files:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "out", ignore_errors=True)
    found = re.search(r"error \[([a-z0-9-]+)\]", said.getvalue())
    return Outcome(exit_code, found[1] if found else "-", said.getvalue())


def prepare(folder: Path, tiny: bool) -> None:
    """Lay a base down: a tiny one that loads, or one that only looks like one."""
    base = folder / "base"
    base.mkdir(exist_ok=True)
    if tiny:
        from bakeoff.testing.tiny import save_llama

        save_llama(base)
    else:
        (base / "config.json").write_text("{}")
        (base / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert base_model.locate_base(str(base), print).fingerprint


def run(kind: str, examples: int, folder: Path, whole: bool, seed: bool) -> tuple[Counter, list]:
    """Run so many examples of a kind; return exits with codes, and the faults."""
    counts: Counter[tuple[int, str]] = Counter()
    faults: list[tuple[Case, Outcome]] = []

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=not seed,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(KINDS[kind]())
    def every(case: Case) -> None:
        outcome = drive(case, folder, whole)
        counts[outcome.exit, outcome.code] += 1
        if outcome.fault:
            faults.append((case, outcome))

    every()
    return counts, faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the examples, print counts by exit code; 1 where bakeoff is at fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--examples", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--whole", type=int, default=300, help="more, up to a worker's checks")
    parser.add_argument("--random", action="store_true", help="other examples in every run")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    parts = [(kind, asked.examples // len(KINDS), False) for kind in KINDS]
    deep = [kind for kind in KINDS if kind != "imports"]  # those start no worker, or would train
    parts += [(kind, asked.whole // len(deep), True) for kind in deep]
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "parts": [],
    }
    blame = 0
    for kind, examples, whole in parts:
        if not examples:
            continue
        with tempfile.TemporaryDirectory() as name:
            prepare(Path(name), tiny=whole)
            counts, faults = run(kind, examples, Path(name), whole, asked.random)
        exits = Counter[int]()
        for (code, _), n in counts.items():
            exits[code] += n
        where = "to a worker's checks" if whole else "to the first worker"
        total = sum(exits.values())
        print(f"{kind}, {where}: {total:,} examples; exits {dict(sorted(exits.items()))}")
        # one of each kind: what is told apart by the traceback's last lines
        for case, outcome in {o.last: (c, o) for c, o in faults}.values():
            ours = {n: text for n, text in case.files.items() if text != files().get(n)}
            print(f"FAULT, exit {outcome.exit}:\n{outcome.last}\n{ours}\n", file=sys.stderr)
        blame += len(faults)
        codes = {f"{e} {c}": n for (e, c), n in counts.most_common()}
        result["parts"].append(
            {
                "kind": kind,
                "whole": whole,
                "examples": sum(exits.values()),
                "exits": {str(e): n for e, n in sorted(exits.items())},
                "codes": codes,
                "faults": len(faults),
            }
        )
    result["faults"] = blame
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if blame else 0


if __name__ == "__main__":
    sys.exit(main())

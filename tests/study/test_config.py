"""The study file: what is refused, and what it says."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from helpers.configs import values

from bakeoff.core.errors import UsageError
from bakeoff.methods import registry
from bakeoff.study.config import dump_spec, parse_spec, read_spec
from bakeoff.study.planning import trials
from bakeoff.study.setup.compatibility import comparable_spec


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budgett": {}}, "unknown key 'budgett'; did you mean 'budget'?"),
        ({"budget": {"step": 3}}, "unknown key 'budget.step'; did you mean 'steps'?"),
        (
            {"method": {"lora": {"learning_rate": [1e-3]}}},
            "unknown key 'method.lora.learning_rate'; did you mean 'learning_rates'?",
        ),
        ({"methods": {"contenders": ["lora"]}}, "listed more than once: lora"),
        ({"method": {"dora": {}}}, "[method.dora] belongs to no method of this study"),
        (
            {"method": {"ia3": {"learning_rates": [1e-3]}}},
            "[method.ia3] gives 1 learning rates, but every method gets budget.settings = 5",
        ),
        ({"name": "../x"}, "name: '../x' is not a valid name: a name has 1 to 64 characters"),
        ({"budget": {"steps": 0}}, "budget.steps"),
        ({"task": {"kind": "classify", "margin": 0}}, "task.margin"),
        (
            {"verdict": {"prefer": "memry"}},
            "verdict.prefer: unknown preference 'memry'; did you mean 'memory'?",
        ),
        (
            {"verdict": {"prefer": {"qualty": 1.0}}},
            "unknown preference 'qualty'; did you mean 'quality'?",
        ),
        ({"verdict": {"prefer": {"quality": "much"}}}, "or a table of numbers under these names"),
        ({"verdict": {"prefer": {"quality": -1.0}}}, "greater than or equal to 0"),
        ({"verdict": {"prefer": {"quality": 0}}}, "no weight is above 0"),
        ({"verdict": {"pareto": ["quality", "memroy"]}}, "unknown axis 'memroy'; did you mean"),
        ({"verdict": {"pareto": ["memory"]}}, "it takes `quality` and at least one other axis"),
        ({"verdict": {"pareto": ["quality", "size", "size"]}}, "listed more than once"),
        ({"verdict": {"paretto": []}}, "unknown key 'verdict.paretto'; did you mean 'pareto'?"),
    ],
)
def test_wrong_studies_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_spec(values(**changes))
    assert error.value.code == "study-invalid"
    assert says in error.value.cause


def test_missing_or_broken_file_refused(tmp_path: Path) -> None:
    """A missing or broken study file is refused."""
    with pytest.raises(UsageError, match="study-not-found"):
        read_spec(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(UsageError, match="study-unreadable"):
        read_spec(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = 'caf\xe9'")
    with pytest.raises(UsageError, match="study-unreadable"):
        read_spec(tmp_path / "latin.toml")


STUDY = """\
name = "s"
[base]
model = "m"
[data]
train = "rows.jsonl"
[task]
kind = "classify"
[methods]
contenders = ["ia3"]
"""


@pytest.mark.parametrize("raw", [STUDY.encode("utf-8-sig"), STUDY.replace("\n", "\r\n").encode()])
def test_study_file_of_windows(raw: bytes, tmp_path: Path) -> None:
    """A byte order mark and Windows line ends are fine."""
    (tmp_path / "study.toml").write_bytes(raw)
    assert read_spec(tmp_path / "study.toml").data.train == "rows.jsonl"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (STUDY.encode("utf-16"), "it is UTF-16, not UTF-8"),
        (STUDY.replace('"s"', '"caf\u00e9"').encode("cp1252"), "byte 0xe9 in line 1"),
        (STUDY.encode("utf-16-le"), "is not TOML"),
    ],
)
def test_study_file_in_another_encoding(raw: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_bytes(raw)
    with pytest.raises(UsageError) as error:
        read_spec(tmp_path / "study.toml")
    assert (error.value.code, says in error.value.cause) == ("study-unreadable", True)
    assert "save it as UTF-8" in error.value.try_


@pytest.mark.parametrize("path", [r"C:\Users\me\rows.jsonl", r"data\win\x.csv", r"D:\Zoë\ü.csv"])
def test_backslashes_in_double_quotes(path: str, tmp_path: Path) -> None:
    """A path with backslashes is refused with the line that works."""
    broken = STUDY.replace("rows.jsonl", path)
    (tmp_path / "study.toml").write_text(broken, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        read_spec(tmp_path / "study.toml")
    fixed = f"train = '{path}'"
    assert (error.value.code, f"`{fixed}`" in error.value.try_) == ("study-unreadable", True)
    fixed_study = broken.replace(f'train = "{path}"', fixed)
    (tmp_path / "study.toml").write_text(fixed_study, encoding="utf-8")
    assert read_spec(tmp_path / "study.toml").data.train == path


def test_backslashes_that_are_escapes() -> None:
    """A backslash that TOML reads as a tab is seen by the tab in the path."""
    text = STUDY.replace("rows.jsonl", r"C:\temp\rows.jsonl")
    with pytest.raises(UsageError, match="single quotes"):
        parse_spec(tomllib.loads(text))


def test_spec_roundtrip() -> None:
    """A spec survives being written and read."""
    spec = parse_spec(values())
    assert parse_spec(dump_spec(spec)) == spec
    weights = {"quality": 1.0, "memory": 0.5}
    spec = parse_spec(values(verdict={"prefer": weights, "pareto": ["quality", "size"]}))
    assert spec.verdict.prefer == weights
    assert parse_spec(dump_spec(spec)) == spec


@pytest.mark.parametrize("name", ["demo.toml", "template.toml"])
def test_shipped_study_files_are_valid(name: str) -> None:
    parse_spec(
        tomllib.loads(
            files("bakeoff.study.config").joinpath("templates", name).read_text(encoding="utf-8")
        )
    )


def test_examples_are_valid() -> None:
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))
    assert examples
    for path in examples:
        read_spec(path)


def test_methods_get_equal_settings() -> None:
    """Every method gets the same number of settings."""
    spec = read_spec(Path(str(files("bakeoff.study.config") / "templates/demo.toml")))
    counts = {
        name: len(trials.initial_settings(registry.load(name, Path()), spec))
        for name in spec.method_names
    }
    assert set(counts.values()) == {3}
    assert len(counts) >= 8


def test_learning_rate_grid_log_spaced() -> None:
    """The learning-rate grid is log-spaced around the prior."""
    assert trials.learning_rates(1e-3, 3) == (3.16e-4, 1e-3, 3.16e-3)
    assert trials.learning_rates(1e-3, 5) == (1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2)
    assert trials.learning_rates(2e-5, 1) == (2e-5,)


def test_ray_study_names_no_gpu() -> None:
    """A study on Ray names no GPU."""
    engine = {"executor": "ray", "device": "cuda:1"}
    with pytest.raises(UsageError, match="write 'cuda'") as error:
        parse_spec(values(engine=engine))
    assert error.value.code == "study-invalid"


def test_host_excluded_from_spec() -> None:
    """The machine on which a study runs is not part of its spec."""
    engine: dict[str, Any] = {

        "executor": "ray", "workers": 9, "gpus_per_segment": 0.5, "segment_retries": 1,
        "ray_address": "auto", "ray_files": "sent", "ray_unauthenticated": True,
    }  # fmt: skip
    here = comparable_spec(parse_spec(values()))
    assert comparable_spec(parse_spec(values(engine=engine))) == here
    assert comparable_spec(parse_spec(values(engine={**engine, "precision": "bf16"}))) != here

"""Results of PEFT's method_comparison as a study: every figure theirs, every interval honest."""

from __future__ import annotations

import copy
import csv
import json
import math
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from bakeoff.analysis.compare import Verdict
from bakeoff.analysis.count_intervals import (
    CorrectCount,
    compare_counts,
    counts_by_method,
    score_intervals,
)
from bakeoff.cli import app
from bakeoff.core.errors import BakeoffError, PreflightError, UsageError
from bakeoff.core.record import ImportedScores
from bakeoff.integrations.peft_benchmark import importing
from bakeoff.integrations.peft_benchmark.importing import ImportOptions, import_results
from bakeoff.integrations.peft_benchmark.results import read_file
from bakeoff.report import render
from bakeoff.study.storage.database import Reader

DATA = Path(__file__).parents[1] / "data" / "hf"
LORA = "lora/llama-3.2-3B-rank32"
LILY = "lily/llama-3.2-3B-rank140-mlp-a2-b2-s8.0"
FILE = "lora--llama-3.2-3B-rank32.json"
DIGITS = {
    "score": 4, "forgetting": 4, "lr": 9, "trainable_params": 0, "train_loss": 4, "mem_max_GB": 2,
    "mem_reserved_avg_GB": 2, "mem_reserved_p99_GB": 2, "train_time_s": 1, "pure_step_time_s": 1,
    "valid_eval_time_s": 1, "total_time_s": 1, "file_size_bytes": 0, "max_steps": 0, "seed": 0,
}  # fmt: skip

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("imported")
    return {
        name: import_results(DATA / name, out / name, ImportOptions(name))
        for name in ("MetaMathQA", "image-gen")
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "MetaMathQA", tmp_path / "results"))


def edited(folder: Path, edit: Edit, name: str = FILE) -> Path:
    value = json.loads((folder / name).read_text())
    edit(value)
    (folder / name).write_text(json.dumps(value))
    return folder


def imported(folder: Path, **wishes: Any) -> dict[str, Any]:
    return import_results(folder, folder.parent / "study", ImportOptions("study", **wishes))


def row_of(report: dict[str, Any], method: str) -> dict[str, Any]:
    (row,) = (m for m in report["methods"] if m["method"] == method)
    return dict(row)


def figures(row: dict[str, Any]) -> dict[str, float | None]:
    """Return what the rows say under the columns of figures.csv."""
    cost, theirs = row["cost"], row["reported"]
    return {
        "score": row["score"]["estimate"],
        "forgetting": (row["forgetting"] or {}).get("estimate"),
        "lr": row["setting"]["learning_rate"],
        "trainable_params": cost["trainable_parameters"],
        "train_loss": row["curves"][0]["points"][-1]["train_loss"],
        "mem_max_GB": cost["train_peak_bytes"] / 1e9,
        "mem_reserved_avg_GB": theirs["accelerator_memory_reserved_avg"] / 1e9,
        "mem_reserved_p99_GB": theirs["accelerator_memory_reserved_99th"] / 1e9,
        "train_time_s": cost["train_seconds"],
        "pure_step_time_s": cost["step_milliseconds"] * theirs["max_steps"] / 1000,
        "valid_eval_time_s": theirs["eval_time"],
        "total_time_s": theirs["total_time"],
        "file_size_bytes": cost["adapter_bytes"],
        "max_steps": theirs["max_steps"],
        "seed": theirs["seed"],
    }


LINES = list(csv.DictReader((DATA / "figures.csv").read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["experiment"])
def test_every_figure_is_theirs(reports: dict[str, Any], line: dict[str, str]) -> None:
    row = row_of(reports[line["benchmark"]], line["experiment"])
    found = figures(row)
    assert found.keys() == DIGITS.keys()
    for column, digits in DIGITS.items():
        mine, theirs = found[column], line[column]
        if column == "file_size_bytes" and theirs == "99999999":
            assert mine is None, "their stand-in for a file that could not be saved is no size"
        elif not theirs:
            assert mine is None, column
        else:
            assert mine is not None, column
            assert abs(mine - float(theirs)) <= 0.500001 * 10**-digits, column
    given = row["reported"]["weight_decay"]
    assert ("" if given is None else given) == (line["weight_decay_explicit"] and float(given))


def test_imported_report_is_ordinary(reports: dict[str, Any]) -> None:
    """An imported report has the ordinary format."""
    schema = json.loads(resources.files("bakeoff.report").joinpath("schema.json").read_text())
    for name, report in reports.items():
        jsonschema.validate(report, schema)
        assert report["complete"] is True
        assert report["imported"]["benchmark"] == name
        assert {m["n_seeds"] for m in report["methods"]} == {1}
        assert "the between-seed variance is unknown" in report["warnings"][0]
        page = render(json.loads(json.dumps(report)))
        assert "These methods did not have the same tuning budget" in page
        assert "measured with the method alone" not in page
    assert reports["MetaMathQA"]["study"]["n_test_items"] == 1319
    assert reports["image-gen"]["study"]["n_test_items"] == 4
    assert reports["MetaMathQA"]["imported"]["differing"] == {
        "optimizer_type": {"AdamW": 4, "lora-fa": 1},
        "weight_decay": {"0.1": 4, "0.01 (none given)": 1},
    }


def test_accuracy_compared_unpaired(reports: dict[str, Any]) -> None:
    """Correct answers are counted and compared unpaired."""
    report = reports["MetaMathQA"]
    control, lily, nothing = (
        row_of(report, m)
        for m in (
            LORA,
            "lily/llama-3.2-3B-rank140-mlp-a2-b2-s8.0",
            "ln_tuning/llama-3.2-3B-default",
        )
    )
    assert report["methods"][0] == control
    # 631 of 1319: Wilson by hand, (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    p, n, z = 631 / 1319, 1319, 1.959964
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((p + z * z / (2 * n) + s * half) / (1 + z * z / n) for s in (-1, 1))
    assert control["score"]["low"] == pytest.approx(low, abs=1e-6)
    assert control["score"]["high"] == pytest.approx(high, abs=1e-6)
    assert (control["verdict"], control["difference"]) == ("control", None)
    assert lily["difference"]["estimate"] == pytest.approx((694 - 631) / 1319)
    assert (lily["verdict"], lily["difference"]["items_needed"]) == ("inconclusive", None)
    assert nothing["verdict"] == "worse"
    assert nothing["score"]["low"] == pytest.approx(0, abs=1e-12)
    assert 0 < nothing["score"]["high"] < 0.01
    assert report["recommendation"]["method"] == LORA
    assert report["front"]["axes"] == ["quality", "memory", "speed", "size", "forgetting"]
    assert 0 < lily["front_probability"] <= 1


def test_few_images_give_no_verdict(reports: dict[str, Any]) -> None:
    """Similarity over four images gets no verdict."""
    report = reports["image-gen"]
    for row in report["methods"]:
        assert (row["score"]["low"], row["score"]["high"], row["difference"]) == (None, None, None)
        assert row["front_probability"] is None
        assert "its uncertainty is unknown" in row["reason"]
    assert {m["verdict"] for m in report["methods"]} == {"control", "none"}
    assert report["recommendation"]["method"] is None
    assert report["recommendation"]["sentence"].startswith("No verdict: the score is one run's")
    assert report["front"]["front"]
    assert any("99,999,999" in w and "randlora" in w for w in report["warnings"])


def test_newcombe_published_example() -> None:
    """Newcombe's interval matches the published example."""
    # Newcombe 1998 (Statistics in Medicine 17:873), table II (a): 56/70 - 48/80, method 10
    (found,) = compare_counts(
        {"a": CorrectCount(56, 70)}, CorrectCount(48, 80), margin=0.02, better="higher"
    ).values()
    assert found.difference.estimate == pytest.approx(0.2)
    assert found.difference.low == pytest.approx(0.0524, abs=5e-5)
    assert found.difference.high == pytest.approx(0.3339, abs=5e-5)
    assert found.verdict is Verdict.BETTER
    assert found.p_adjusted == pytest.approx(found.p_value)


@pytest.mark.parametrize("right", [0, 40, 48, 55, 56, 60, 80])
@pytest.mark.parametrize("others", [0, 9])
def test_p_says_what_the_interval_says(right: int, others: int) -> None:
    contenders = {
        "a": CorrectCount(right, 80),
        **{f"b{i}": CorrectCount(48, 80) for i in range(others)},
    }
    found = compare_counts(contenders, CorrectCount(48, 80), margin=0.02, better="higher")["a"]
    low, high = found.difference.low, found.difference.high
    assert low is not None
    assert high is not None
    assert (found.p_adjusted <= 0.05) == (not low <= 0 <= high)
    # Sidak: the level of one of m intervals that hold together in 95 %
    assert found.p_adjusted == pytest.approx(1 - (1 - found.p_value) ** len(contenders), abs=1e-9)
    if right == 48:
        assert (found.p_value, found.verdict) == (1.0, Verdict.INCONCLUSIVE)


def test_equivalence_needs_many_items() -> None:
    """Equivalence needs many items, and lower may be better."""
    many = CorrectCount(500_000, 1_000_000)
    near, far = CorrectCount(501_000, 1_000_000), CorrectCount(530_000, 1_000_000)
    found = compare_counts({"near": near, "far": far}, many, margin=0.01, better="lower")
    assert [f.verdict for f in found.values()] == [Verdict.EQUIVALENT, Verdict.WORSE]
    assert compare_counts({}, many, margin=0.01, better="lower") == {}


def test_no_count_without_items() -> None:
    given = {"a": ImportedScores(0.5, None, None, {}), "b": ImportedScores(None, 10, None, {})}
    assert counts_by_method(given) == {}
    assert score_intervals(given)["a"].low is None
    assert "b" not in score_intervals(given)


def test_commands_accept_imported_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands work on an imported folder."""
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    done = run(app, ["import-hf", str(DATA / "MetaMathQA"), "--out", "runs/one", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["study"]["control"] == LORA
    other = ["import-hf", str(DATA / "MetaMathQA"), "--control", "full-finetuning/llama-3.2-3B-lr_"
             "0.00001", "--margin", "0.05"]  # fmt: skip
    shown = run(app, other)
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "runs" / "hf-MetaMathQA" / "report.html").is_file()
    assert "full-finetuning" in shown.stdout.splitlines()[1]
    status = run(app, ["status", "one", "--json"])
    assert json.loads(status.stdout)["done"] == 5
    again = run(app, ["report", "one", "--json"])
    assert json.loads(again.stdout) == json.loads(done.stdout)
    compared = json.loads(run(app, ["compare", "one", "hf-MetaMathQA", "--json"]).stdout)
    assert [d["what"] for d in compared["differences"]] == []
    assert compared["agreement"]["other_control"] == 5
    with Reader(tmp_path / "runs" / "one" / "study.db") as reader:
        assert len(reader.trials()) == 5
    with pytest.raises(UsageError, match="folder-taken"):
        import_results(DATA / "MetaMathQA", Path("runs/one"), ImportOptions("one"))


def canceled(value: dict[str, Any]) -> None:
    value["train_info"] |= {"status": "canceled"}
    value["train_info"]["metrics"].pop()
    value["run_info"]["error_msg"] = "CUDA out of memory. Tried to allocate 2 GiB"


def test_cancelled_run_is_row(folder: Path) -> None:
    """A cancelled run is a row with its reason."""
    name = "lily--llama-3.2-3B-rank140-mlp-a2-b2-s8.0.json"
    report = imported(edited(folder, canceled, name))
    row = row_of(report, LILY)
    assert (row["status"], row["score"], row["verdict"]) == ("out_of_memory", None, "none")
    assert row["reason"].startswith("CUDA out of memory")
    assert row["n_seeds"] == 0
    assert {f["phase"] for f in report["failures"]} == {"probe", "final"}


def of_2025(value: dict[str, Any]) -> None:
    """Write a file as method_comparison did before accelerators, forgetting and times."""
    train = value["train_info"]
    for key in ("num_trainable_params", "num_total_params"):
        del train[key]
    for key in ("memory_max", "memory_reserved_avg", "memory_reserved_99th"):
        train[f"cuda_{key}"] = train.pop(f"accelerator_{key}")
    del value["run_info"]["error_msg"]
    for entry in train["metrics"]:
        for key in ("train time", "eval time", "forgetting", "train total tokens"):
            entry.pop(key, None)


def test_older_files_have_none(folder: Path) -> None:
    """Files of 2025 are read, and fields they lack are None."""
    report = imported(edited(folder, of_2025))
    row = row_of(report, LORA)
    assert row["cost"]["train_peak_bytes"] == 22_292_725_760
    for key in ("trainable_parameters", "step_milliseconds", "train_tokens_per_second"):
        assert row["cost"][key] is None, key
    assert row["forgetting"] is None
    assert row["front_probability"] is None
    assert report["front"]["left_out"] == {LORA: ["speed", "forgetting"]}


def dropped(section: str, key: str) -> Edit:
    return lambda value: value[section].pop(key)


def put(path: str, new: Any) -> Edit:
    def edit(value: dict[str, Any]) -> None:
        *way, key = path.split(".")
        for part in way:
            value = value[int(part) if part.lstrip("-").isdigit() else part]
        value[key] = new

    return edit


def renamed(section: str, old: str, new: str) -> Edit:
    return lambda value: value[section].update({new: value[section].pop(old)})


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (dropped("train_info", "train_time"), "train_info.train_time is missing"),
        (
            renamed("train_info", "train_time", "trian_time"),
            r"train_info.train_time is missing \(there is 'trian_time'\)",
        ),
        (dropped("run_info", "peft_config"), "run_info.peft_config is missing"),
        (put("train_info.train_time", "942"), "train_info.train_time: .*not '942'"),
        (put("train_info.file_size", -1), "train_info.file_size"),
        (put("train_info.status", "done"), "train_info.status: `done`"),
        (put("run_info.train_config.optimizer_kwargs", {}), "optimizer_kwargs.lr is missing"),
        (put("train_info.metrics.-1.test accuracy", "0.4"), "`test accuracy` is '0.4'"),
        (put("train_info.metrics.-1.test accuracy", float("nan")), "is not a number"),
        (put("train_info.metrics.-1.test f1", 0.1), "expected one test metric"),
        (put("train_info.metrics", [{"step": 5000}]), "has no key `test ...`"),
    ],
)
def test_wrong_file_names_key(folder: Path, edit: Edit, says: str) -> None:
    """A wrong file is reported with its key."""
    with pytest.raises(PreflightError, match=says) as refused:
        imported(edited(folder, edit))
    assert refused.value.code == "hf-result-invalid"
    assert FILE in refused.value.cause
    assert not (folder.parent / "study").exists()


def test_invalid_json_refused(folder: Path) -> None:
    """A file that is no JSON is refused."""
    (folder / FILE).write_text("{")
    with pytest.raises(PreflightError, match="hf-result-invalid.*cannot be read"):
        imported(folder)


def more(name: str, edit: Edit) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        shutil.copy(folder / FILE, folder / name)
        edited(folder, edit, name)

    return add


def image_beside(folder: Path) -> None:
    shutil.copy(DATA / "image-gen" / "lora--flux2-klein-default.json", folder)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("spoil", "wishes", "code", "says"),
    [
        (empty, {}, "no-hf-results", "no result files"),
        (
            more("twin.json", lambda v: None), {}, "hf-result-double",
            "twin.json are results of the same",
        ),
        (image_beside, {}, "hf-results-mixed", "of image-gen"),
        (
            more("other.json", lambda v: (
                put("run_info.experiment_name", "lora/other")(v),
                put("run_info.train_config.model_id", "gpt2")(v),
            )[0]),
            {}, "hf-results-mixed", "model_id is not the same .*gpt2",
        ),
        (
            more("other.json", renamed("train_info", "metrics", "metrics")),
            {"control": "lora/llama-3.2-3B-rank33"}, "hf-result-double", "results of the same",
        ),
        (lambda f: None, {"control": "lora/llama-3.2-3B-rank33"}, "unknown-experiment", "rank33"),
        (lambda f: (f / FILE).unlink(), {}, "hf-control-unknown", LORA),
        (lambda f: None, {"test_items": 1000}, "hf-test-items-wrong", "not a fraction of 1000"),
        (lambda f: None, {"margin": 0.0}, "hf-margin", "must be above 0"),
        (
            lambda f: edited(f, put("run_info.train_config.query_template", None))
            and edited(f, lambda v: v["run_info"]["train_config"].pop("query_template")),
            {}, "hf-result-unknown", "an unknown benchmark",
        ),
    ],
)  # fmt: skip
def test_unusable_folder_refused(
    folder: Path, spoil: Callable[[Path], Any], wishes: dict[str, Any], code: str, says: str
) -> None:
    """A folder whose files make no study is refused."""
    spoil(folder)
    with pytest.raises(BakeoffError, match=says) as refused:
        imported(folder, **wishes)
    assert refused.value.code == code
    assert not (folder.parent / "study").exists()


def test_other_test_size_accepted() -> None:
    """Another test size is accepted where it fits."""
    value = copy.deepcopy(read_file(DATA / "MetaMathQA" / FILE))
    made = importing.build_study(DATA / "MetaMathQA", ImportOptions("x", test_items=2 * 1319))
    assert made.values["imported"]["n_items"]["test"] == 2638
    assert made.values["imported"]["reported"][value.name]["n"] == 2638

"""`bakeoff methods`: the table, its filters, a method's page, the cache, the docs made of it."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bakeoff.cli import app, methods
from bakeoff.core import jobs
from bakeoff.core.errors import UsageError
from bakeoff.methods import capability_records, published_results, registry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Call `bakeoff methods` in an empty folder, with an empty cache."""
    monkeypatch.setenv("BAKEOFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        result = CliRunner().invoke(app, ["methods", *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def names(result: Result) -> set[str]:
    return {m["name"] for m in json.loads(result.stdout)}


def test_json_list_has_capabilities(run: Callable[..., Result]) -> None:
    """The JSON list says what each method can do."""
    listed = json.loads(run("--json").stdout)
    assert {m["name"] for m in listed} == set(registry.names())
    for m in listed:
        assert {type(m[k]) for k in ("mergeable", "to_lora", "lanes")} == {bool}, m["name"]
        assert set(m["quantized"]) <= {"4bit", "8bit", "int8"}
        assert set(m["serves"]) == {"vllm"}
        assert m["title"]
        assert m["family"] in registry.FAMILIES
        assert set(m["measured"]["on"]) == {"llama", "gpt2", "bert", "t5"}
    without = {m["name"] for m in listed if m["peft_type"] is None}
    assert without == {"full", "head", "bitfit"}


@pytest.mark.parametrize(
    ("arguments", "within", "without"),
    [
        (["--trains", "t5"], {"lora", "ia3"}, {"cpt", "adaption_prompt", "xlora"}),
        (["--trains", "gpt2"], {"lora", "bitfit"}, {"oft", "miss"}),
        (["--mergeable"], {"lora", "dora", "full"}, {"prompt_tuning", "prefix_tuning", "xlora"}),
        (["--serves", "vllm"], {"lora", "pissa", "miss"}, {"dora", "ia3", "full"}),
        (["--quantized", "4bit"], {"lora", "ia3"}, {"full", "hra", "pissa"}),
        (["--lanes"], {"lora", "velora"}, {"xlora"}),
        (["--family", "low-rank"], {"lora", "dora"}, {"ia3", "oft"}),
        (["--family", "low-rank", "--serves", "vllm"], {"lora"}, {"vera", "dora"}),
    ],
)
def test_filters(
    run: Callable[..., Result], arguments: list[str], within: set[str], without: set[str]
) -> None:
    found = names(run(*arguments, "--json"))
    assert within <= found
    assert not without & found
    table = run(*arguments).stdout
    first = {line.split()[0] for line in table.splitlines()[1:] if not line.startswith(" ")}
    assert first == found


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        ("--trains", "llamma", "unknown-base"),
        ("--serves", "tgi", "unknown-server"),
        ("--quantized", "2bit", "unknown-quantization"),
        ("--family", "lowrank", "unknown-family"),
    ],
)
def test_impossible_filter_refused(
    run: Callable[..., Result], option: str, value: str, code: str
) -> None:
    """A filter that no method can pass is refused."""
    with pytest.raises(UsageError) as error:
        run(option, value)
    assert error.value.code == code
    assert "Known:" in error.value.try_


def test_page_compares_claim_and_measurement(run: Callable[..., Result]) -> None:
    """A method's page holds the claim and the measurement."""
    page = run("dora").stdout
    for text in (
        "https://arxiv.org/abs/2402.09353",
        "use_dora = True",
        "tune r",
        "PEFT claims that it can",
        "on t5",
        "metamathqa",
        "standard error is 1.37 points",
    ):
        assert text in page, text
    assert "saved as plain LoRA" in run("lora").stdout
    assert "cannot run      it needs LoRA adapters trained before" in run("xlora").stdout
    assert "published" not in run("eva").stdout


def test_user_method_file_shown(run: Callable[..., Result], tmp_path: Path) -> None:
    """A method file of the user is shown as well."""
    text = registry.read_source("lora", tmp_path).replace("r = 32", "r = 2", 1)
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    assert "not probed" in run("mine.toml").stdout
    own = json.loads(run("mine.toml", "--json").stdout)
    assert (own["name"], own["config"]["r"], own["mergeable"]) == ("mine", 2, None)
    assert run("mine.toml", "--toml").stdout == text


def test_toml_needs_a_name(run: Callable[..., Result]) -> None:
    with pytest.raises(UsageError, match="no-method-named"):
        run("--toml")


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answer the probe from the record; return the names that it was asked for."""
    probed: list[str] = []
    record = capability_records.load_shipped()["methods"]

    def answer(
        function: str, payloads: Sequence[dict[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any] | None, str | None]]:
        assert function == "bakeoff.training.preflight.capabilities:probe_method"
        for index, payload in enumerate(payloads):
            name = payload["entry"]["name"]
            probed.append(name)
            died = name == "dora" and len(probed) == 1
            yield index, None if died else record[name], "the worker died" if died else None

    monkeypatch.setattr(methods, "run_in_processes", answer)
    return probed


def test_probe_result_cached(run: Callable[..., Result], probed: list[str]) -> None:
    """The result of a probe is cached."""
    run("lora", "--probe")
    again = run("lora", "--probe", "--json")
    assert probed == ["lora"]
    assert json.loads(again.stdout)["probed_with"] == capability_records.versions()


def test_probe_runs_in_subprocess() -> None:
    """The probe runs in a process of its own."""
    entry = registry.load("arrow", Path())
    ((index, value, error),) = methods.run_in_processes(
        jobs.PROBE_METHOD, [{"entry": methods.entry_to_json(entry)}]
    )
    assert (index, error) == (0, None)
    assert value == capability_records.load_shipped()["methods"]["arrow"]


def test_crashed_probe_reported_and_retried(run: Callable[..., Result], probed: list[str]) -> None:
    """A probe that crashed is reported and run again."""
    assert "the worker died" in run("dora", "--probe").stderr
    run("dora", "--probe")
    assert probed == ["dora", "dora"]


def test_changed_entry_is_stale(tmp_path: Path) -> None:
    """A catalog entry that changed does not match its probe."""
    entry = registry.load("lora", tmp_path)
    found = capability_records.find_record(
        entry, tmp_path, capability_records.load_shipped()
    ).capabilities
    assert found is not None
    capability_records.save_record(entry, found, tmp_path)
    other = dataclasses.replace(entry, config={**entry.config, "r": 4})
    assert (
        capability_records.find_record(
            other, tmp_path, capability_records.load_shipped()
        ).capabilities
        is None
    )
    prose = dataclasses.replace(entry, mechanism="said in other words", learning_rate=1e-2)
    assert capability_records.find_record(prose, tmp_path, {"methods": {}}).capabilities == found


def test_variant_has_capabilities_of_its_method(tmp_path: Path) -> None:
    """A method under another name has the capabilities of the method with the same arguments."""
    entry, shipped = registry.load("dora", tmp_path), capability_records.load_shipped()
    variant = dataclasses.replace(entry, name="dora-2")
    found = capability_records.find_record(variant, tmp_path, shipped).capabilities
    assert found == capability_records.find_record(entry, tmp_path, shipped).capabilities


def test_other_versions_named_once(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other package versions are named in one line."""
    own = capability_records.load_shipped()["versions"]
    same = {p: own[p] for p in capability_records.PACKAGES}
    monkeypatch.setattr(capability_records, "_version", same.get)
    assert run("--json").stderr == ""
    monkeypatch.setattr(
        capability_records, "_version", {**same, "peft": "9.9", "torchao": None}.get
    )
    said = run("--json").stderr
    assert said.count("\n") == 1
    assert f"peft {own['peft']}, here 9.9" in said
    assert "torchao" not in said
    assert "bakeoff methods --probe" in said


def test_broken_cache_entry_probed_again(
    run: Callable[..., Result], probed: list[str], tmp_path: Path
) -> None:
    """A broken cache entry is probed again."""
    run("lora", "--probe")
    (kept,) = (tmp_path / "cache").rglob("lora-*.json")
    kept.write_text("{", encoding="utf-8")
    run("lora", "--probe")
    assert probed == ["lora", "lora"]


def test_record_matches_catalog() -> None:
    """The committed record covers the catalog as it is.

    A failure here: `bakeoff methods --probe`, then `scripts/make_methods_page.py --record`.
    """
    record = capability_records.load_shipped()
    catalog = {e.name: e for e in page_script().entries()}
    assert set(record["methods"]) == set(catalog)
    for name, entry in catalog.items():
        assert record["methods"][name]["entry"] == capability_records.entry_hash(entry), name


def test_docs_page_matches_record() -> None:
    """The page in the docs is the one that the record gives."""
    script = page_script()
    written = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert script.page(script.entries(), capability_records.load_shipped()) == written


def page_script() -> Any:
    """Import the script as `python scripts/make_methods_page.py` would run it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        return importlib.import_module("make_methods_page")


def test_published_results_name_catalog_methods() -> None:
    """Published results name methods of the catalog."""
    lora = published_results.find_results("lora")
    assert (lora[0].experiment, lora[0].value) == ("lora/llama-3.2-3B-rank10-target-mlp", 0.4943)
    assert lora[-1].task == "imagegen"
    found = {name for name in registry.names() if published_results.find_results(name)}
    assert len(found) > 40
    assert sum(len(published_results.find_results(n)) for n in found) == 94


def test_counts_on_user_model(
    run: Callable[..., Result], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts on a user's model come from a worker.

    The counts come from a worker; what they mean in bytes is told here.
    """
    answers = {"lora": {"parameters": 8192}, "pissa": {"parameters": 8192}, "oft": {"reason": "no"}}

    def answer(
        function: str, payloads: Sequence[dict[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any] | None, str | None]]:
        assert function == jobs.PROBE_ON_MODEL
        for index, payload in enumerate(payloads):
            assert payload["path"] == str(tiny_llama)
            yield index, answers.get(payload["entry"]["name"], {"reason": "no"}), None

    monkeypatch.setattr(methods, "run_in_processes", answer)
    listed = json.loads(run("--model", str(tiny_llama), "--json").stdout)
    found = {m["name"]: m["on_model"] for m in listed}
    state = {"parameters": 8192, "training_state_bytes": 16 * 8192}
    assert found["lora"] == {**state, "checkpoint_bytes": 4 * 8192}
    assert found["pissa"] == {**state, "checkpoint_bytes": 2 * 4 * 8192}
    assert found["oft"] == {"reason": "no"}
    table = run("--model", str(tiny_llama), "--family", "orthogonal").stdout
    assert "not this model: no" in table
    assert "8,192 parameters" in run("lora", "--model", str(tiny_llama)).stdout


def test_counts_by_hand(tiny_llama: Path, tiny_bert: Path) -> None:
    pytest.importorskip("bakeoff.training.preflight.parameter_count")
    from bakeoff.training.preflight.capabilities.on_model import count_on_model

    lora = methods.entry_to_json(registry.load("lora", Path()))
    # r (in + out): 32 wide, 16 for k and v, 64 inside; q and o, k and v, gate and up and down
    layer = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64)
    assert count_on_model({"entry": lora, "path": str(tiny_llama)}) == {
        "parameters": 2 * 32 * layer
    }
    cpt = methods.entry_to_json(registry.load("cpt", Path()))
    assert "reason" in count_on_model({"entry": cpt, "path": str(tiny_bert)})

"""How each method ran, from what its probe decided and its trials did; and what that forbids."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from helpers.records import Pair, final, hits, make_cost, make_engine, make_record, search

import bakeoff.report
from bakeoff.analysis.summary import summarise
from bakeoff.core.errors import FAULT
from bakeoff.core.record import StudyRecord
from bakeoff.core.results import Status
from bakeoff.study.storage.database.reader import Reader
from bakeoff.study.storage.database.writer import Writer

SCHEMA = json.loads((Path(bakeoff.report.__file__).parent / "schema.json").read_text())


def engines(record: StudyRecord) -> dict[str, Any]:
    made = summarise(record, np.random.default_rng(0))
    jsonschema.validate(made, SCHEMA)
    return {m["method"]: m["engine"] for m in made["methods"]}


def sharing(pairs: list[Pair], lanes: int) -> list[Pair]:
    return [(t, dataclasses.replace(r, lanes=lanes) if r else None) for t, r in pairs]


def trained(method: str, right: int = 120) -> list[Pair]:
    """Return a search of two lanes and finals of three."""
    tests = {seed: hits(right, 200) for seed in (1, 2, 3)}
    return sharing(search(method, {1e-4: 0.9, 1e-3: 0.5}), 2) + sharing(final(method, tests), 3)


def test_faults_are_counted() -> None:
    """An error of bakeoff's own is no reason: it is listed as a fault."""
    why = f"{FAULT}, please report it with the file in logs/ (ValueError: sizes)"
    costs = {
        "lora": make_cost("lora", engine=make_engine()),
        "oft": make_cost("oft", engine=make_engine(packing=why)),
    }
    broken = [
        (t, dataclasses.replace(r, warnings=(f"trained sequentially, not in lanes: {why}",)))
        for t, r in trained("oft")
        if r
    ]
    found = engines(make_record(trained("lora") + broken, ("lora", "oft"), costs=costs))
    assert "faults" not in found["lora"]
    assert found["oft"]["faults"] == ["packing", "lanes"]


def test_method_row_lists_accelerators() -> None:
    """A method's row lists the accelerators it used and why the others were off."""
    costs = {
        "lora": make_cost("lora", engine=make_engine()),
        "oft": make_cost("oft", engine=make_engine(lanes="its frozen tensors differ by seed")),
    }
    record = make_record(trained("lora") + trained("oft"), ("lora", "oft"), costs=costs)
    assert engines(record) == {
        "lora": {
            "lanes": 3,
            "on": ["lanes", "packing", "loss", "lean_inputs"],
            "off": {"compile": None, "graphs": None},
        },
        "oft": {
            "lanes": 1,  # its groups of three took turns
            "on": ["packing", "loss", "lean_inputs"],
            "off": {"lanes": "its frozen tensors differ by seed", "compile": None, "graphs": None},
        },
    }


def test_unknown_accelerators_omitted() -> None:
    """Nothing is reported about accelerators when nothing is known."""
    unlike = Status.INCOMPATIBLE
    costs = {
        "lora": make_cost("lora"),  # of a study from before lanes
        "oft": dataclasses.replace(make_cost("oft"), status=unlike, reason="no such module"),
        "dora": make_cost("dora", engine=make_engine()),
    }
    record = make_record(search("lora", {1e-3: 0.5}), ("lora", "oft", "ia3", "dora"), costs=costs)
    found = engines(record)
    assert (found["lora"], found["oft"], found["ia3"]) == (None, None, None)
    assert found["dora"]["lanes"] is None  # probed, not trained yet


def test_failed_probe_runs_plain() -> None:
    """A method whose probe failed ran without accelerators."""
    failed = dataclasses.replace(make_cost("oft"), status=Status.FAILED, reason="it broke")
    trials = trained("lora") + trained("oft")
    costs = {"lora": make_cost("lora", engine=make_engine()), "oft": failed}
    oft = engines(make_record(trials, ("lora", "oft"), costs=costs))["oft"]
    why = "the cost probe failed, so it could not be tested"
    assert oft == {
        "lanes": 1,
        "on": [],
        "off": {
            "lanes": why, "packing": why, "loss": why,
            "compile": None, "graphs": None, "lean_inputs": why,
        },
    }  # fmt: skip
    before = {"lora": make_cost("lora"), "oft": failed}
    assert engines(make_record(trials, ("lora", "oft"), costs=before))["oft"] is None


def test_accelerated_memory_never_recommends() -> None:
    """Memory saved by an accelerator alone is no reason to change the method."""

    def sentence(control: dict[str, Any], contender: dict[str, Any]) -> str:
        costs = {
            "lora": make_cost("lora", engine=control),
            "ia3": make_cost("ia3", 600_000, engine=contender),
        }
        record = make_record(trained("lora") + trained("ia3"), ("lora", "ia3"), costs=costs)
        made = summarise(record, np.random.default_rng(0))
        return str(made["recommendation"]["sentence"])

    cheaper = "IA3 (40 % less training memory)"
    unpacked, alone = make_engine(packing="cannot"), make_engine(lanes="cannot")
    assert cheaper in sentence(make_engine(), make_engine())
    assert cheaper not in sentence(unpacked, make_engine())
    assert cheaper in sentence(make_engine(), unpacked)  # cheaper all the same
    assert cheaper in sentence(alone, make_engine())  # one trial alone is measured


def test_stored_probe_switches(tmp_path: Path) -> None:
    """The probe's decisions are read back from the database."""
    kept = make_cost("oft", engine=make_engine(packing="cannot"))
    with Writer(tmp_path / "study.db") as store:
        store.save_cost(kept)
    with Reader(tmp_path / "study.db") as reader:
        assert reader.costs() == {"oft": kept}

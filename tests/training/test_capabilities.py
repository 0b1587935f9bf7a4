"""What methods can do is found by doing it: facts that can be checked by hand, and the record."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bakeoff.core.trial import MethodEntry
from bakeoff.methods import capability_records, registry
from bakeoff.methods.capability_records import (
    AcceleratorSupport,
    BaseResult,
    Capabilities,
    Measurement,
    QuantizationSupport,
)
from bakeoff.training.preflight import capabilities
from bakeoff.training.preflight.capabilities import layers, post_training, quantized, tiny
from bakeoff.training.preflight.capabilities.train import (
    ProbeFailed,
    TrainedModel,
    difference,
    resolve_config,
    train,
)

# what PEFT warns of its own settings is no part of what is looked at here
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
PROBED = ("lora", "dora", "ia3")


def entry(name: str, **config: Any) -> MethodEntry:
    found = registry.load(name, Path())
    return dataclasses.replace(found, config={**found.config, **config})


def trained(name: str, kind: str = "llama") -> TrainedModel:
    own = entry(name)
    return train(own, dict(own.config), kind, tiny.base(kind))


@pytest.fixture(scope="module")
def probed() -> dict[str, Capabilities]:
    """Probe three methods as `bakeoff methods --probe` does: JSON in, JSON out."""
    found = {}
    for name in PROBED:
        value = json.loads(json.dumps({"entry": dataclasses.asdict(entry(name))}))
        answer = json.loads(json.dumps(capabilities.probe_method(value)))
        found[name] = Capabilities.from_json(answer)
    return found


@pytest.mark.parametrize("name", PROBED)
def test_probe_matches_record(name: str, probed: dict[str, Capabilities]) -> None:
    """A probe finds what the record says.

    Figures may differ in rounding from machine to machine; verdicts and counts may not.
    """
    shipped = Capabilities.from_json(capability_records.load_shipped()["methods"][name])
    assert verdicts(probed[name]) == verdicts(shipped)
    for kind, works in probed[name].quantised.items():
        if importlib.util.find_spec(quantized.PACKAGES[kind]):
            assert works.works == shipped.quantised[kind].works
        else:
            assert works == QuantizationSupport(
                None, f"{quantized.PACKAGES[kind]} is not installed"
            )


def verdicts(own: Capabilities) -> dict[str, Any]:
    return {
        "peft_type": own.peft_type,
        "entry": own.entry,
        "trains": own.trains,
        "mergeable": own.mergeable,
        "to_lora": own.to_lora,
        "claims": own.claims_conversion,
        "lanes": own.lanes_by_task,
        "vllm": own.vllm,
        "layers": own.layers,
        "counts": {k: (o.parameters, o.checkpoint_bytes) for k, o in own.on.items()},
    }


def test_lora_by_hand(probed: dict[str, Capabilities]) -> None:
    own, at = probed["lora"], probed["lora"].on["llama"]
    # two layers of q and o, k and v, gate and up and down: r (in + out) each
    widths = 2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 256)
    assert at.parameters == 2 * 8 * widths
    assert at.checkpoint_bytes == 4 * at.parameters
    assert at.start == at.reload == at.disable == Measurement(0.0)
    assert at.merge.value is not None
    assert at.merge.value < 1e-5
    assert own.to_lora
    assert own.vllm == "adapter"
    assert own.layers[:3] == ("Linear", "Conv1D", "Embedding")


def test_dora_conversion_loses_training(
    probed: dict[str, Capabilities],
) -> None:
    """DoRA claims a conversion that loses what it trained."""
    own = probed["dora"]
    assert own.claims_conversion
    assert not own.to_lora
    lost = own.conversion["8"].value
    assert lost is not None
    assert lost > 1e-2
    assert own.mergeable
    assert own.vllm == "merged"
    assert own.plain == Measurement(None, "it is saved with use_dora")


def test_ia3_trains_everywhere(probed: dict[str, Capabilities]) -> None:
    own = probed["ia3"]
    assert own.trains == ["llama", "gpt2", "bert", "t5"]
    assert own.peft_type == "IA3"
    assert own.lanes


def test_untrainable_method_gives_reason() -> None:
    """A method that cannot be trained by itself says what it needs."""
    own = Capabilities.from_json(
        capabilities.probe_method({"entry": dataclasses.asdict(entry("xlora"))})
    )
    assert own.needs == "LoRA adapters trained before, which it mixes"
    assert own.trains == []
    assert {o.reason for o in own.on.values()} == {own.needs}
    assert (own.mergeable, own.to_lora, own.lanes, own.quantized) == (False, False, False, [])


def test_prompt_does_not_merge() -> None:
    """A prompt method does not merge."""
    found = post_training.try_measure(
        lambda: post_training.merge_difference(trained("prompt_tuning"))
    )
    assert found.value is None
    assert "no weight to merge them into" in str(found.reason)


def test_pissa_changes_base_saves_lora(tmp_path: Path) -> None:
    """PiSSA does not restore the base, and its file is plain LoRA."""
    at = trained("pissa")
    assert post_training.disable_difference(at) > 0.1
    assert post_training.conversion_loss(at, 8) > 1
    post_training.save(at, tmp_path)
    assert post_training.reload_difference(at, tmp_path) < 1e-5
    assert post_training.plain_lora_loss(at, tmp_path) < capability_records.MAX_CONVERSION_LOSS


def test_partial_training_is_merged() -> None:
    """Training part of the base needs no merge."""
    at = trained("bitfit", "bert")
    assert post_training.merge_difference(at) == 0
    assert "no adapter" in str(
        post_training.try_measure(lambda: post_training.disable_difference(at)).reason
    )


def test_frozen_change_is_not_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A method that modifies frozen weights does not train."""
    from bakeoff.methods.hook import Hook

    def spoil(self: Hook, model: Any, step: int, lane: int) -> None:
        with torch.no_grad():
            model.get_input_embeddings().weight[0] += 1

    monkeypatch.setattr(Hook, "after_step", spoil)
    with pytest.raises(ProbeFailed, match=r"embed_tokens\.weight was frozen and changed"):
        trained("lora")


def test_zero_rate_is_not_training() -> None:
    """A rate that changes nothing does not train."""
    still = dataclasses.replace(entry("lora"), learning_rate=0.0)
    with pytest.raises(ProbeFailed, match="no trained tensor moved"):
        train(still, dict(still.config), "llama", tiny.base("llama"))


def test_peft_refusal_is_recorded() -> None:
    """A refusal by PEFT is recorded."""
    own = dataclasses.replace(entry("oft"), name="oft")
    with pytest.raises(Exception, match="Conv1D"):
        train(own, dict(own.config), "gpt2", tiny.base("gpt2"))
    wrong = {"entry": dataclasses.asdict(entry("lora", r=-1))}
    answer = Capabilities.from_json(capabilities.probe_method(wrong))
    assert answer.trains == []
    assert "positive integer" in str(answer.on["llama"].reason)
    assert answer.quantised["4bit"].works is False


def test_wrong_entry_reported() -> None:
    """A wrong catalog entry is a finding of the probe."""
    wrong = dataclasses.replace(entry("lora"), peft="LoraConfigg")
    answer = Capabilities.from_json(capabilities.probe_method({"entry": dataclasses.asdict(wrong)}))
    assert answer.peft_type is None
    assert answer.layers == ()
    assert "LoraConfigg" in str(answer.on["llama"].reason)


def test_nonfinite_value_gives_reason() -> None:
    """A value that is not finite is a reason."""
    nothing = torch.zeros(3)
    found = post_training.try_measure(lambda: difference(nothing, nothing))
    assert found == Measurement(None, "its logits are nan")


def test_oversized_rank_probed_smaller() -> None:
    """A rank beyond the tiny layers is measured at a smaller one."""
    own = entry("vera")
    assert own.config["r"] > capabilities.MAX_RANK
    found = capabilities.probe_conversion(Capabilities("vera", ""), own, trained("vera"))
    assert found.natural_rank == capabilities.MAX_RANK
    assert found.to_lora
    assert not found.conversion["8"].within(capability_records.MAX_CONVERSION_LOSS)


def test_supported_layers_found_by_trial() -> None:
    """The supported layer types are found by trying."""
    assert layers.supported_layers(entry("oft")) == ("Linear", "Embedding")
    assert layers.supported_layers(entry("prompt_tuning")) == ()
    assert layers.supported_layers(entry("full")) == ()


def test_packed_bytes_detected(tmp_path: Path) -> None:
    """Packed bytes taken for weights are detected."""
    pytest.importorskip("bitsandbytes")
    plain, own = trained("hra"), entry("hra")
    found = quantized.probe_quantized(own, "8bit", tmp_path, plain)
    assert found.works is False
    assert "off those on the plain base" in str(found.reason)


def test_missing_package_gives_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package gives no verdict."""
    monkeypatch.setitem(quantized.PACKAGES, "4bit", "no_such_package")
    found = quantized.probe_quantized(entry("lora"), "4bit", tmp_path, trained("lora"))
    assert found == QuantizationSupport(None, "no_such_package is not installed")


def test_rules_resolved_on_plain_base() -> None:
    """Rules are resolved on the base without an adapter."""
    assert resolve_config(entry("lora"))["lora_alpha"] == 32
    assert resolve_config(entry("pissa"))["lora_alpha"] == entry("pissa").config["r"]
    assert resolve_config(entry("c3a"))["block_size"] in (32, 64)


def test_capabilities_survive_json() -> None:
    own = Capabilities(
        "m",
        "hash",
        "LORA",
        on={"llama": BaseResult(True, parameters=3, effect=0.5, merge=Measurement(1e-7)),
            "t5": BaseResult(False, "it refuses")},
        lanes_by_task={
            "sft": AcceleratorSupport(("lanes",), {"loss": "why"}),
            "classify": AcceleratorSupport(),
        },
        conversion={"8": Measurement(None, "no")},
        quantised={
            "4bit": QuantizationSupport(None, "is not installed"),
            "8bit": QuantizationSupport(False, "x"),
        },
        layers=("Linear",),
    )  # fmt: skip
    assert Capabilities.from_json(json.loads(json.dumps(own.to_json()))) == own


@pytest.mark.parametrize(
    ("merge", "effect", "holds"),
    [(1e-6, 0.1, True), (1e-3, 0.1, False), (5e-5, 1e-3, False), (None, 0.1, False)],
)
def test_merge_preserves_effect_and_logits(merge: float | None, effect: float, holds: bool) -> None:
    """Merging must preserve the adapter's effect, not only the logits."""
    at = BaseResult(True, effect=effect, merge=Measurement(merge))
    assert Capabilities("m", "", on={"llama": at}).mergeable is holds


def test_expected_adapter_file() -> None:
    """The adapter file is the expected one."""

    def saves(times: float) -> Capabilities:
        at = BaseResult(True, parameters=1000, checkpoint_bytes=int(4000 * times))
        return Capabilities("m", "", on={"llama": at})

    assert saves(1).checkpoint_bytes(50) == 200
    assert saves(2).checkpoint_bytes(50) == 400
    assert saves(1.5).checkpoint_bytes(50) is None
    assert saves(0.1).checkpoint_bytes(50) is None

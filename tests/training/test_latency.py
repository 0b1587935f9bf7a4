"""What an example takes with the adapter apart, and merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from bakeoff.engine.accelerators import Switches
from bakeoff.testing.tiny import write_splits
from bakeoff.testing.trials import build_tiny_setup, make_trial
from bakeoff.training.preflight import latency


@pytest.mark.parametrize("task", ["sft", "classify"])
def test_merged_leaves_no_adapter(task: str, bases: dict[str, Path], tmp_path: Path) -> None:
    """Merged weights contain no adapter modules."""
    bench = build_tiny_setup(make_trial("lora", task), bases[task], tmp_path, Switches.all_off())
    bench.model.eval()
    run = latency._median_example_forward(bench)
    with torch.no_grad():
        for name, parameter in bench.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.02)  # an adapter that does something
    before = run(bench.model)
    merged = latency._merge(bench.model)
    assert merged is not None
    assert not any(isinstance(m, BaseTunerLayer) for m in merged.modules())
    torch.testing.assert_close(run(merged), before, atol=1e-4, rtol=1e-4)


def test_unmergeable_has_no_merged_latency(tiny_llama: Path, tmp_path: Path) -> None:
    """A method that does not merge has no merged latency."""
    data = write_splits(tmp_path / "data")
    prompts = latency.measure_latency(make_trial("prompt_tuning", "sft"), str(tiny_llama), data)
    assert prompts.unmerged_ms is not None
    assert prompts.merged_ms is None
    whole = latency.measure_latency(make_trial("full", "sft"), str(tiny_llama), data)
    assert whole.unmerged_ms == whole.merged_ms, "there is nothing to merge"
    lora = latency.measure_latency(make_trial("lora", "sft"), str(tiny_llama), data)
    assert lora.unmerged_ms is not None
    assert lora.merged_ms is not None
    assert 0 < lora.merged_ms < lora.unmerged_ms

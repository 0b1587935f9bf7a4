"""One method on one page: description, tuning space, probed capabilities, published results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bakeoff.cli.display.method_row import MethodRow
from bakeoff.cli.display.output import escape_text, out
from bakeoff.core.format import MIB, format_integer
from bakeoff.core.trial import MethodEntry
from bakeoff.methods.capability_records import (
    EXACT_TOLERANCE,
    RANK,
    BaseResult,
    Capabilities,
    Measurement,
)
from bakeoff.methods.published_results import CAVEATS, SOURCE, TASKS, find_results
from bakeoff.study.planning.trials import learning_rates

SHOWN_RATES = 5
WIDTH = 15
SERVED_AS: dict[str | None, str] = {
    "adapter": "as saved (ranks above 16 need --max-lora-rank)",
    "converted": "converted to LoRA",
    "merged": "only as a merged model",
}


def show_page(row: MethodRow, model: str | None) -> None:
    """Print the page."""
    entry = row.entry
    name, family = escape_text(entry.name), escape_text(entry.family)
    out.print(f"[bold]{escape_text(entry.title)}[/] ({name}), {family}")
    out.print(f"  {entry.mechanism}", markup=False, soft_wrap=True)
    lines = [
        *_description_lines(entry),
        *_capability_lines(row),
        *_model_lines(row, model),
        *_published_lines(entry.name),
    ]
    for label, text in lines:
        out.print(f"  {label:<{WIDTH}} {text}", markup=False, soft_wrap=True)


def _description_lines(entry: MethodEntry) -> Iterator[tuple[str, str]]:
    yield "paper", entry.paper or "-"
    how = [entry.peft] if entry.peft else []
    yield "how", ", ".join([*how, *([f"hook {entry.hook}"] if entry.hook else [])])
    yield "arguments", ", ".join(f"{k} = {v}" for k, v in entry.config.items()) or "-"
    yield (
        "learning rates",
        ", ".join(f"{r:g}" for r in learning_rates(entry.learning_rate, SHOWN_RATES)),
    )
    yield "", entry.learning_rate_why
    for part, factor in entry.rates.items():
        yield "", f"tensors named {part}: {factor:g} times the learning rate"
    for argument, space in entry.tuning.items():
        values = ", ".join(str(v) for v in space["values"])
        yield f"tune {argument}", f"{values} ({space['why']})"
    if entry.size is not None:
        allowed = entry.size.get("values") or f"multiples of {entry.size['step']}"
        yield "size", f"set by {entry.size['argument']}: {allowed}"


def _capability_lines(row: MethodRow) -> Iterator[tuple[str, str]]:
    capabilities = row.record.capabilities
    if capabilities is None:
        yield "capabilities", "not probed: run `bakeoff methods NAME --probe`"
        return
    if capabilities.needs is not None:
        yield "cannot run", f"it needs {capabilities.needs}"
        return
    versions = row.record.versions
    yield "probed with", ", ".join(f"{p} {v}" for p, v in versions.items() if v is not None)
    for base, result in capabilities.on.items():
        yield (
            f"on {base}",
            _format_probe(result) if result.trains else f"does not train: {result.reason}",
        )
    at = capabilities.main
    if at is not None:
        yield "merges", _format_answer(capabilities.mergeable, at.merge, "logits off by {}")
    yield "to LoRA", _format_conversion(capabilities)
    yield "vLLM", SERVED_AS.get(capabilities.vllm, "no")
    for kind, trained in capabilities.quantised.items():
        words = {None: "not tried", False: "no", True: "yes"}[trained.works]
        yield f"{kind} base", words + (f" ({trained.reason})" if trained.reason else "")
    yield "", "probed on a CPU; GPU kernels may differ"
    for task, support in capabilities.lanes_by_task.items():
        yield f"{task} engine", " ".join(support.switches) or "-"
        for switch, reason in support.reasons.items():
            yield "", f"no {switch}: {reason}"
    yield "layers", " ".join(capabilities.layers) or "chosen by the method"


def _format_probe(result: BaseResult) -> str:
    start = "starts equal to the base"
    if result.start.value is not None and result.start.value > EXACT_TOLERANCE:
        start = f"starts {result.start.value:g} off the base"
    return (
        f"trains {format_integer(result.parameters)} parameters, saves "
        f"{format_integer(result.checkpoint_bytes)} bytes, {start}, reloads "
        f"{_format_deviation(result.reload)}, disabled {_format_disabled(result.disable)}"
    )


def _format_deviation(measured: Measurement) -> str:
    if measured.value is None:
        return f"(not: {measured.reason})"
    return "exactly" if measured.value <= EXACT_TOLERANCE else f"{measured.value:g} off"


def _format_disabled(disabled: Measurement) -> str:
    if disabled.value is None:
        return f"is not possible ({disabled.reason})"
    off = disabled.value > EXACT_TOLERANCE
    return f"is {disabled.value:g} off the base" if off else "restores the base"


def _format_answer(holds: bool, measured: Measurement, form: str) -> str:
    detail = measured.reason if measured.value is None else form.format(f"{measured.value:g}")
    return f"{'yes' if holds else 'no'} ({detail})"


def _format_conversion(capabilities: Capabilities) -> str:
    if capabilities.vllm == "adapter":
        return "not needed: saved as plain LoRA"
    errors = [
        f"r = {rank}: {error.reason or f'{error.value:.2g} of its effect is lost'}"
        for rank, error in capabilities.conversion.items()
    ]
    claim = (
        ""
        if capabilities.to_lora or not capabilities.claims_conversion
        else "; PEFT claims that it can"
    )
    answer = "yes" if capabilities.to_lora else "no"
    return f"{answer} ({'; '.join(errors) or f'r = {RANK}: -'}{claim})"


def _model_lines(row: MethodRow, model: str | None) -> Iterator[tuple[str, str]]:
    if row.on_model is None:
        return
    reason = row.on_model.get("reason")
    if reason is not None:
        yield "on the model", f"{model}: cannot be attached: {reason}"
        return
    yield "on the model", f"{model}: {format_integer(row.on_model['parameters'])} parameters"
    yield "", f"{_format_mib(row.on_model.get('checkpoint_bytes'))} to save"
    yield (
        "",
        f"{_format_mib(row.on_model['training_state_bytes'])} of values, gradients and moments",
    )


def _format_mib(value: Any) -> str:
    return "-" if value is None else f"{value / MIB:,.1f} MiB"


def _published_lines(name: str) -> Iterator[tuple[str, str]]:
    runs = find_results(name)
    if not runs:
        return
    yield "published", f"by Hugging Face: {SOURCE}"
    for run in runs:
        yield (
            f"  {run.task}",
            f"{run.metric} {run.value:.3f} at lr {run.learning_rate:g}, "
            f"{run.parameters:,} parameters, {run.memory_gb:.1f} GB, {run.seconds:,.0f} s "
            f"({run.experiment})",
        )
    for caveat in CAVEATS:
        task = caveat.partition(":")[0]
        if task not in TASKS or any(run.task == task for run in runs):
            yield "  note", caveat

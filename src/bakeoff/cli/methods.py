"""``bakeoff methods``: the catalog and each method's capabilities, as a table or one page."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from bakeoff.cli.display.method_row import (
    SERVERS,
    STATE_BYTES,
    MethodRow,
    format_yes,
    run_in_processes,
)
from bakeoff.cli.display.output import JSON_OPTION, err, show_document, show_json, show_table
from bakeoff.core import jobs
from bakeoff.core.errors import UsageError, unknown_name
from bakeoff.core.format import format_integer
from bakeoff.core.redact import strip_control_chars

if TYPE_CHECKING:
    from bakeoff.core.trial import MethodEntry
    from bakeoff.methods.capability_records import CapabilityRecord

SERVED_AS_ADAPTER = ("adapter", "converted")
"""Ways in which one server can serve several adapters on one base; a merged model is not one."""


class Filters(NamedTuple):
    """Conditions on the methods to show; None and False are no condition."""

    trains: str | None
    mergeable: bool
    serves: str | None
    quantized: str | None
    lanes: bool
    family: str | None


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("methods")(command)


def command(
    name: str | None = typer.Argument(
        None, help="A method of the catalog, or your capabilities TOML file: print its page."
    ),
    trains: str | None = typer.Option(
        None, help="Only methods that train on llama, gpt2, bert or t5."
    ),
    mergeable: bool = typer.Option(
        False, "--mergeable", help="Only methods that merge without loss."
    ),
    serves: str | None = typer.Option(
        None, help="Only methods that this server loads as an adapter: vllm."
    ),
    quantized: str | None = typer.Option(
        None, help="Only methods that train on a quantised base: 4bit or 8bit."
    ),
    lanes: bool = typer.Option(
        False, "--lanes", help="Only methods whose trials can share a training step."
    ),
    family: str | None = typer.Option(None, help="Only this family, for example low-rank."),
    probe: bool = typer.Option(
        False, "--probe", help="Probe the capabilities again with the installed versions."
    ),
    model: str | None = typer.Option(
        None, help="Count parameters on this model: a folder, a hub id or asset:NAME."
    ),
    toml: bool = typer.Option(False, "--toml", help="Print the method's TOML file."),
    as_json: bool = JSON_OPTION,
) -> None:
    """List the methods and what each can do, or print the page of one method."""
    from bakeoff.methods import registry

    if toml:
        if name is None:
            hint = "`bakeoff methods lora --toml`."
            raise UsageError("no-method-named", "--toml prints one method's file.", hint)
        show_document(strip_control_chars(registry.read_source(name, Path())))
        return
    filters = Filters(trains, mergeable, serves, quantized, lanes, family)
    check_filters(filters)
    entries = [registry.load(n, Path()) for n in ([name] if name else registry.names())]
    records = load_capabilities(entries, probe)
    if name is None:
        entries = [e for e in entries if passes_filters(e, records[e.name], filters)]
    counted = count_on_model(entries, model) if model else {}
    rows = [
        MethodRow(e, records[e.name], add_byte_counts(counted.get(e.name), records[e.name]))
        for e in entries
    ]
    if as_json:
        values = [row_to_json(row) for row in rows]
        show_json(values[0] if name else values)
    elif name:
        from bakeoff.cli.display.method_page import show_page

        show_page(rows[0], model)
    else:
        show_method_table(rows, model)


def check_filters(filters: Filters) -> None:
    """Check that each filter names a known value.

    Raises:
        UsageError: ``unknown-base``, ``unknown-server``, ``unknown-quantization``,
            ``unknown-family``.
    """
    from bakeoff.methods.capability_records import BASES, KINDS
    from bakeoff.methods.registry import FAMILIES

    known = {"trains": BASES, "serves": SERVERS, "quantized": KINDS, "family": FAMILIES}
    kinds = {"trains": "base", "serves": "server", "quantized": "quantization", "family": "family"}
    for option, values in known.items():
        given = getattr(filters, option)
        if given is not None and given not in values:
            raise unknown_name(f"unknown-{kinds[option]}", kinds[option], given, values)


def passes_filters(entry: MethodEntry, record: CapabilityRecord, filters: Filters) -> bool:
    """Return whether a method passes the filters; one that was never probed passes none."""
    capabilities = record.capabilities
    if filters.family is not None and entry.family != filters.family:
        return False
    conditions = filters._replace(family=None)
    if not any(conditions):
        return True
    return capabilities is not None and all(
        (
            conditions.trains is None or conditions.trains in capabilities.trains,
            not conditions.mergeable or capabilities.mergeable,
            conditions.serves is None or capabilities.vllm in SERVED_AS_ADAPTER,
            conditions.quantized is None or conditions.quantized in capabilities.quantized,
            not conditions.lanes or capabilities.lanes,
        )
    )


def load_capabilities(entries: Sequence[MethodEntry], probe: bool) -> dict[str, CapabilityRecord]:
    """Return each method's capabilities by name; with ``probe``, probe what the cache lacks."""
    from bakeoff.data.assets.cache import cache_folder, translate_os_errors
    from bakeoff.methods import capability_records

    cache = cache_folder()
    if probe:
        with translate_os_errors():
            missing = [e for e in entries if not capability_records.is_cached(e, cache)]
            if missing:
                probe_methods(missing, cache)
    shipped = capability_records.load_shipped()
    records = {e.name: capability_records.find_record(e, cache, shipped) for e in entries}
    versions = [r.versions for r in records.values() if r.capabilities is not None]
    differences = {capability_records.describe_version_difference(v) for v in versions} - {None}
    for difference in sorted(str(d) for d in differences):
        err.print(
            f"Probed with other versions: {difference}. `bakeoff methods --probe` probes again.",
            soft_wrap=True,
        )
    return records


def probe_methods(entries: Sequence[MethodEntry], cache: Path) -> None:
    """Probe methods in parallel and store their capabilities in the cache."""
    from bakeoff.cli.display.progress import LiveProgress
    from bakeoff.methods import capability_records

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tiny base models are made locally
    with LiveProgress(err) as live:
        live.phase("Probe", len(entries), 0)
        for index, value, error in run_in_processes(
            jobs.PROBE_METHOD, [{"entry": entry_to_json(e)} for e in entries]
        ):
            if value is None:
                live.say(f"{entries[index].name}: {error}")
            else:
                capabilities = capability_records.Capabilities.from_json(value)
                capability_records.save_record(entries[index], capabilities, cache)
            live.advance(entries[index].name)


def count_on_model(entries: Sequence[MethodEntry], model: str) -> dict[str, dict[str, Any]]:
    """Return each method's parameter counts on ``model``, or why it cannot be attached."""
    from bakeoff.cli.display.progress import LiveProgress
    from bakeoff.study.setup import base_model

    counts: dict[str, dict[str, Any]] = {}
    with LiveProgress(err) as live:
        path = base_model.locate_base(model, live.say).path
        live.phase("Count", len(entries), 0)
        payloads = [{"entry": entry_to_json(e), "path": path} for e in entries]
        for index, value, error in run_in_processes(jobs.PROBE_ON_MODEL, payloads):
            counts[entries[index].name] = value if value is not None else {"reason": error}
            live.advance(entries[index].name)
    return counts


def add_byte_counts(
    counted: dict[str, Any] | None, record: CapabilityRecord
) -> dict[str, Any] | None:
    """Add the bytes that these parameters take on disk and in training."""
    parameters = counted.get("parameters") if counted else None
    if counted is None or parameters is None:
        return counted
    capabilities = record.capabilities
    saved = capabilities.checkpoint_bytes(parameters) if capabilities else None
    state = STATE_BYTES * parameters
    return {**counted, "checkpoint_bytes": saved, "training_state_bytes": state}


def entry_to_json(entry: MethodEntry) -> dict[str, Any]:
    """Return a method entry as JSON values."""
    return dataclasses.asdict(entry)


def row_to_json(row: MethodRow) -> dict[str, Any]:
    """Return a method as an object for ``--json``."""
    capabilities = row.record.capabilities
    at = capabilities.main if capabilities else None
    return {
        **dataclasses.asdict(row.entry),
        "peft_type": capabilities.peft_type if capabilities else None,
        "trains": capabilities.trains if capabilities else None,
        "mergeable": capabilities.mergeable if capabilities else None,
        "to_lora": capabilities.to_lora if capabilities else None,
        "lanes": capabilities.lanes if capabilities else None,
        "quantized": capabilities.quantized if capabilities else None,
        "serves": {"vllm": capabilities.vllm if capabilities else None},
        "layers": list(capabilities.layers) if capabilities else None,
        "parameters": at.parameters if at else None,
        "checkpoint_bytes": at.checkpoint_bytes if at else None,
        "measured": capabilities.to_json() if capabilities else None,
        "probed_with": row.record.versions if capabilities else None,
        "on_model": row.on_model,
    }


def show_method_table(rows: Sequence[MethodRow], model: str | None) -> None:
    """Print the table of methods."""
    where = "on the model" if model else "tiny base"
    columns = (
        "name", "<family", f"parameters, {where}", "<lanes", "<merges", "<to LoRA", "<vLLM",
        "<quantised base", "<trains on",
    )  # fmt: skip
    show_table(columns, [_table_cells(row) for row in rows])


def _table_cells(row: MethodRow) -> tuple[str, ...]:
    capabilities = row.record.capabilities
    at = capabilities.main if capabilities else None
    parameters = at.parameters if at else None
    if row.on_model is not None:
        parameters = row.on_model.get("parameters")
    family = row.entry.family
    if capabilities is None:
        return (row.entry.name, family, format_integer(parameters), *["-"] * 5, "not probed")
    if capabilities.needs is not None:
        return (row.entry.name, family, "-", *["-"] * 5, f"needs {capabilities.needs}")
    reason = row.on_model.get("reason") if row.on_model else None
    return (
        row.entry.name,
        family,
        format_integer(parameters),
        format_yes(capabilities.lanes),
        format_yes(capabilities.mergeable),
        "is LoRA" if capabilities.vllm == "adapter" else format_yes(capabilities.to_lora),
        capabilities.vllm or "-",
        " ".join(capabilities.quantized) or "-",
        f"not this model: {reason}" if reason else " ".join(capabilities.trains) or "-",
    )

"""Write ``docs/methods.md`` from the catalog and the shipped capability record.

Run it after either has changed; a test compares the page with its output.

    python scripts/make_methods_page.py

Make the record itself again from the user's cache, with the versions that CI pins:

    bakeoff methods --probe && python scripts/make_methods_page.py --record
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core.trial import MethodEntry
from bakeoff.data.assets.cache import cache_folder
from bakeoff.methods import capability_records, registry
from bakeoff.methods.capability_records import EXACT_TOLERANCE, Capabilities

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"


class Family(NamedTuple):
    """A family of methods: its idea, and when to choose it."""

    idea: str
    choose: str


FAMILIES = {
    "low-rank": Family(
        "add a trained product of two thin matrices to each weight",
        "first: the most used and best supported by servers; you set its size",
    ),
    "orthogonal": Family(
        "rotate each weight (or keep its main directions) and train the rotation",
        "the base's knowledge must be kept",
    ),
    "vector scaling": Family(
        "train vectors that scale activations, or that scale frozen random matrices",
        "you store many adapters: a few kilobytes each",
    ),
    "sparse": Family(
        "train a few chosen entries of each weight, or of its spectrum",
        "the merged model should differ from the base in few places",
    ),
    "bias and norm": Family(
        "train the biases or norm weights that the base has",
        "the task is close to pretraining; adapters are tiny",
    ),
    "prompt": Family(
        "train virtual tokens or attention prefixes before the input; no weight changes",
        "weights must not change; each input costs more, and it cannot be merged",
    ),
    "mixture": Family(
        "train several adapters and a router",
        "the data is heterogeneous",
    ),
    "embedding rows": Family(
        "train the rows of chosen tokens in the input embedding",
        "new or rare tokens carry the task",
    ),
    "full": Family(
        "train every weight",
        "memory and storage allow one copy of the model for each task",
    ),
    "head": Family(
        "train only the task's new output layer",
        "as the baseline that every other method must beat",
    ),
    "other": Family(
        "circulant kernels, joint factors, a shadow network: see each row",
        "the usual families fall short",
    ),
}

INTRO = """\
# Methods

*Written by `scripts/make_methods_page.py` from `src/bakeoff/methods/catalog/` and the record of the
probe; edit those.*

The catalog has {n} methods; {able} of them need no other input. Capabilities are **probed, not
claimed**: `bakeoff methods --probe` attaches each method to tiny random models, trains it for a few
steps and tests everything below ({versions}).
`bakeoff methods` prints this table with filters, `bakeoff methods NAME` a method's page: the
measured values, the tuning space and its sources. `--model M` counts parameters on your own model.

## Families

| family | what it does | choose it if |
|---|---|---|
"""

LEGEND = """
## The table

- **parameters**: trained on the tiny Llama (2 layers, 128 wide; LoRA with r = 8 trains 32,768).
  They scale differently with the model: `bakeoff methods --model M` counts on yours. *Italic*: on
  another tiny base.
- **lanes**: its trials can share one training step ([performance](performance.md)); tokens/s and
  memory on an H100, for each measured method: [results](../benchmarks/results/README.md).
- **merges**: `merge_and_unload` gives the same logits.
- **LoRA**: *is* if it is saved as plain LoRA, which inference servers such as vLLM load unchanged
  (one scale, only A and B; vLLM needs `--max-lora-rank` for ranks above 16); *yes* if PEFT's
  `convert_to_lora` keeps all but a thousandth of what was trained, at the method's own rank or at
  8; else *no*.
- **quantised**: trains on a base in bitsandbytes' 4 or 8 bits or torchao's int8, and computes the
  same there as on the unquantised base. Probed on a CPU, where DoRA's 8-bit path fails inside PEFT.
- **trains on**: Llama and GPT-2 (causal language models), BERT (classification), T5. Studies have
  tasks for the first three; T5 shows what PEFT can do.

| method | family | what it is | parameters | lanes | merges | LoRA | quantised | trains on |
|---|---|---|---:|---|---|---|---|---|
"""

FINDINGS = """
## Where the claim and the measurement differ

"""


def entries() -> list[MethodEntry]:
    """Return the catalog's own entries, by family and name."""
    names = [f.name for f in files("bakeoff.methods.catalog").iterdir()]
    found = [registry.load(n[:-5], ROOT) for n in names if n.endswith(".toml")]
    return sorted(found, key=lambda e: (list(FAMILIES).index(e.family), e.name))


def page(catalog: Sequence[MethodEntry], record: Mapping[str, Any]) -> str:
    """Return the page."""
    methods = {e.name: Capabilities.from_json(record["methods"][e.name]) for e in catalog}
    able = sum(c.needs is None for c in methods.values())
    versions = ", ".join(f"{p} {v}" for p, v in record["versions"].items() if v is not None)
    parts = [INTRO.format(n=len(catalog), able=able, versions=versions)]
    parts += [f"| {name} | {f.idea} | {f.choose} |\n" for name, f in FAMILIES.items()]
    parts.append(LEGEND)
    parts += [row(e, methods[e.name]) for e in catalog]
    parts.append(FINDINGS)
    parts += [f"- {line}\n" for line in findings(catalog, methods)]
    return "".join(parts)


def row(entry: MethodEntry, own: Capabilities) -> str:
    """Return a method's line of the table."""
    what = entry.mechanism.replace("|", "\\|")
    title = f"[{entry.title}]({entry.paper})" if entry.paper else entry.title
    start = f"| {title} (`{entry.name}`) | {entry.family} | {what} | "
    if own.needs is not None:
        return f"{start} | | | | | needs {own.needs} |\n"
    at = own.main
    lora = "is" if own.vllm == "adapter" else "yes" if own.to_lora else "no"
    parameters = f"{at.parameters:,}" if at else ""
    if own.trains and own.trains[0] != "llama":
        parameters = f"*{parameters}*"
    cells = (
        parameters, "yes" if own.lanes else "no", "yes" if own.mergeable else "no", lora,
        " ".join(own.quantized) or "no", " ".join(own.trains),
    )  # fmt: skip
    return f"{start}{' | '.join(cells)} |\n"


def findings(catalog: Sequence[MethodEntry], all_: Mapping[str, Capabilities]) -> Iterator[str]:
    """Yield unexpected results, each with the methods concerned."""
    able = {e.title: all_[e.name] for e in catalog if all_[e.name].main is not None}
    lost = {
        title: min(e.value for e in own.conversion.values() if e.value is not None)
        for title, own in able.items()
        if own.claims_conversion and not own.to_lora and own.vllm != "adapter"
        and any(e.value is not None for e in own.conversion.values())
    }  # fmt: skip
    yield (
        "PEFT claims a conversion to LoRA; of what was trained, it loses: "
        + listed(f"{title} {100 * value:.2g} %" for title, value in lost.items())
    )
    inside = [t for t, own in able.items() if own.vllm == "adapter" and not own.to_lora]
    yield (
        "PEFT's conversion of the live model is wrong; bakeoff saves the method as plain LoRA: "
        + listed(inside)
    )
    yield "Disabling the adapter does not restore the base: " + listed(
        f"{t} (logits {own.main.disable.value:.2g} off)"
        for t, own in able.items()
        if own.main
        and own.main.disable.value is not None
        and own.main.disable.value > EXACT_TOLERANCE
    )
    yield "Before the first step the model differs from the base: " + listed(
        f"{t} ({own.main.start.value:.2g} off)"
        for t, own in able.items()
        if own.main and own.main.start.value is not None and own.main.start.value > EXACT_TOLERANCE
    )
    yield "Does not merge: " + listed(t for t, own in able.items() if not own.mergeable)
    sequential = [t for t, own in able.items() if not own.lanes]
    if sequential:
        yield "Trials run sequentially, not in lanes: " + listed(sequential)
    else:
        yield "Trials of all of them can train in lanes."


def listed(words: Iterator[str] | Sequence[str]) -> str:
    """Return words as a list in a sentence."""
    return "; ".join(words) + "."


def make_record(catalog: Sequence[MethodEntry]) -> dict[str, Any]:
    """Return the record of all methods from the user's cache, with the installed versions."""
    cache = cache_folder()
    missing = [e.name for e in catalog if not capability_records.is_cached(e, cache)]
    if missing:
        raise SystemExit(f"not probed here: {', '.join(missing)}; `bakeoff methods --probe` first")
    nothing = {"methods": {}}
    found = {
        e.name: capability_records.find_record(e, cache, nothing).capabilities for e in catalog
    }
    methods = {n: c.to_json() for n, c in sorted(found.items()) if c is not None}
    return {"versions": capability_records.versions(), "methods": methods}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--record", action="store_true", help="make the record again from the cache"
    )
    catalog = entries()
    if parser.parse_args().record:
        path = ROOT / "src" / "bakeoff" / "methods" / "probed.json"
        text = json.dumps(make_record(catalog), indent=1)
        path.write_text(f"{text}\n", encoding="utf-8")
    PAGE.write_text(page(catalog, capability_records.load_shipped()), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Facts about each benchmark in ``method_comparison`` that its result files do not state.

These are the metric, the number of test items, and the experiment that is the plain LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bakeoff.core.errors import PreflightError, UsageError
from bakeoff.core.record import MetricInfo
from bakeoff.integrations.peft_benchmark.results import ResultFile, invalid_result

BAKEOFF_SECTION = "bakeoff"
"""The section of ``meta_info`` that ``bakeoff report --hf-json`` adds to its files."""
BAKEOFF_COSTS = (
    "train_peak_bytes",
    "memory_kind",
    "base_bytes",
    "step_milliseconds",
    "train_tokens_per_second",
)
"""Costs of the cost probe in that section; PEFT's format has no field with the same meaning."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; ``mark`` is a training parameter that only its runs have.

    ``n_test`` is the number of items behind the metric. ``no_interval`` is the reason why the mean
    over them has no confidence interval, if it has none. ``forgetting`` is the key of the metric
    for forgetting.
    """

    name: str
    mark: str
    task: str
    metric: MetricInfo
    n_test: int | None
    n_validation: int | None
    control: str | None
    forgetting: str
    no_interval: str | None = None


METAMATHQA = Benchmark(
    "MetaMathQA",
    "query_template",
    "MetaMathQA -> GSM8K",
    MetricInfo("accuracy", better="higher", unit="fraction", low=0.0, high=1.0),
    n_test=1319,  # openai/gsm8k, configuration main, split test
    n_validation=50,
    control="lora/llama-3.2-3B-rank32",
    forgetting="forgetting",
)
IMAGE_GEN = Benchmark(
    "image-gen",
    "dino_model_id",
    "DreamBooth on photographs of one cat",
    MetricInfo("dino_similarity", better="higher", unit="", low=-1.0, high=1.0),
    n_test=None,  # each run's own ``test_size``
    n_validation=None,
    control="lora/flux2-klein-default",
    forgetting="drift",
    no_interval="the score is one run's mean similarity over a few images; the file lacks the "
    "values per image, so its uncertainty is unknown",
)
BENCHMARKS = (METAMATHQA, IMAGE_GEN)


def benchmark_of(results: Sequence[ResultFile], items: int | None) -> Benchmark:
    """Return the benchmark of all ``results``; ``items`` overrides its number of test items.

    Raises:
        PreflightError: ``hf-results-mixed``, ``hf-result-unknown``.
        UsageError: ``hf-test-items-unknown``.
    """
    first_of: dict[Benchmark, ResultFile] = {}
    for result in results:
        first_of.setdefault(_identify(result), result)
    if len(first_of) > 1:
        shown = ", ".join(f"{result.path.name} of {_label(b)}" for b, result in first_of.items())
        raise PreflightError(
            "hf-results-mixed",
            f"The folder holds results of different benchmarks: {shown}.",
            "a separate folder for each.",
        )
    (benchmark,) = first_of
    n_test = items or benchmark.n_test or _common_value(results, "test_size")
    if n_test is None and benchmark.no_interval is None:
        raise UsageError(
            "hf-test-items-unknown",
            f"{results[0].path} does not state the number of test items behind its accuracy.",
            "`--test-items N`.",
        )
    n_validation = benchmark.n_validation or _common_value(results, "valid_size")
    return Benchmark(**{**benchmark.__dict__, "n_test": n_test, "n_validation": n_validation})


def _label(benchmark: Benchmark) -> str:
    if benchmark.name != BAKEOFF_SECTION:
        return benchmark.name
    scored = f"{benchmark.metric.name} of {benchmark.n_test} test items"
    return f"{BAKEOFF_SECTION} ({benchmark.task}, {scored})"


def _identify(result: ResultFile) -> Benchmark:
    ours = result.meta.get(BAKEOFF_SECTION)
    if isinstance(ours, Mapping):
        return _bakeoff_benchmark(result, ours)
    for known in BENCHMARKS:
        if hasattr(result.run.train_config, known.mark):
            named = result.metric
            if named not in (None, known.metric.name):
                break
            return known
    marks = " or ".join(f"`{b.mark}`" for b in BENCHMARKS)
    raise PreflightError(
        "hf-result-unknown",
        f"{result.path} is from an unknown benchmark: its test metric is `{result.metric}`, and "
        f"run_info.train_config should have {marks}.",
        "results of method_comparison/MetaMathQA or method_comparison/image-gen.",
    )


def _bakeoff_benchmark(result: ResultFile, ours: Mapping[str, Any]) -> Benchmark:
    """Return the benchmark that a file written by bakeoff describes."""
    lacking = [k for k in ("metric", "task", "n_test_items", "binary", "cost") if k not in ours]
    cost, metric = ours.get("cost"), ours.get("metric")
    lacking += [f"cost.{k}" for k in BAKEOFF_COSTS if not isinstance(cost, dict) or k not in cost]
    if lacking:
        raise invalid_result(result.path, f"meta_info.{BAKEOFF_SECTION} lacks {', '.join(lacking)}")
    counts = [ours["n_test_items"], ours.get("n_validation_items")]
    if not isinstance(metric, dict) or not all(_is_count(n) for n in counts):
        raise invalid_result(
            result.path, f"meta_info.{BAKEOFF_SECTION}: `metric` or a number of items is invalid"
        )
    try:
        measured = MetricInfo(**metric)
    except TypeError as error:
        raise invalid_result(result.path, f"meta_info.{BAKEOFF_SECTION}.metric: {error}") from error
    if measured.better not in ("higher", "lower"):
        raise invalid_result(
            result.path, f"meta_info.{BAKEOFF_SECTION}.metric.better is {measured.better!r}"
        )
    why = None
    if not ours["binary"]:
        why = "the score is one run's mean of scores that are not just 0 and 1; the file lacks the "
        why += "scores per item, so its uncertainty is unknown"
    return Benchmark(
        BAKEOFF_SECTION,
        BAKEOFF_SECTION,
        str(ours["task"]),
        measured,
        ours["n_test_items"],
        ours.get("n_validation_items"),
        None,
        "forgetting",
        why,
    )


def _common_value(results: Sequence[ResultFile], key: str) -> int | None:
    values = [getattr(r.run.train_config, key, None) for r in results]
    return values[0] if all(_is_count(n) and n == values[0] for n in values) else None


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value > 0)

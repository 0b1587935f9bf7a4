"""Read and check result files of PEFT's ``method_comparison``: one JSON file per run.

The format has no version number. Files from 2025 (``cuda_memory_...``, no error message, no
parameter counts, no times in the metrics) are read too; values that they lack are None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from bakeoff.core.errors import PreflightError, UsageError, near_match
from bakeoff.core.safe_read import RESULT_BYTES, UnreadableFile, find_unsupported_value, read_json

SUCCESS, STATUSES = "success", ("success", "canceled", "failed")
TEST = "test "
"""Prefix of the test metric's key in the last entry of ``metrics``."""
NO_FILE_SIZE = 99_999_999
"""Placeholder that the benchmark writes when a checkpoint could not be saved."""

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class OptimizerKwargs(_Section):
    """``run_info.train_config.optimizer_kwargs``; other keys are kept as they are."""

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    weight_decay: Amount | None = None


class TrainConfig(_Section):
    """``run_info.train_config``: the keys that are read; other keys are kept as they are."""

    model_id: str
    dtype: str
    max_steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    batch_size_eval: Annotated[int, Field(ge=1)]
    seed: Count
    optimizer_type: str
    optimizer_kwargs: OptimizerKwargs
    lr_scheduler: str | None
    grad_norm_clip: Amount


class RunInfo(_Section):
    """``run_info``: the run's identity and parameters."""

    experiment_name: Annotated[str, Field(min_length=1)]
    created_at: str | None
    total_time: Amount | None
    train_config: TrainConfig
    peft_config: dict[str, Any] | None
    """None: full fine-tuning."""
    error_msg: str | None = None


def _device_field(rest: str) -> Any:
    return Field(validation_alias=AliasChoices(f"accelerator_{rest}", f"cuda_{rest}"))


class TrainInfo(_Section):
    """``train_info``: costs (bytes, seconds) and results of the run."""

    memory_max: Count | None = _device_field("memory_max")
    memory_mean: Count | None = _device_field("memory_reserved_avg")
    memory_99th: Count | None = _device_field("memory_reserved_99th")
    train_time: Amount | None
    file_size: Count | None
    num_trainable_params: Count | None = None
    num_total_params: Count | None = None
    status: str
    metrics: list[dict[str, Any]]


class ModelInfo(_Section):
    """``meta_info.model_info``."""

    sha: str | None = None


class MetaInfo(_Section):
    """``meta_info``: the environment of the run, and bakeoff's own section in its files."""

    model_info: ModelInfo | None = None
    dataset_info: dict[str, Any] | None = None
    package_info: dict[str, Any] | None = None
    system_info: dict[str, Any] | None = None
    bakeoff: dict[str, Any] | None = None


class _File(_Section):
    run_info: RunInfo
    train_info: TrainInfo
    meta_info: MetaInfo


@dataclass(frozen=True)
class ResultFile:
    """One run, as read from its file."""

    path: Path
    run: RunInfo
    train: TrainInfo
    meta: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The experiment's name, such as ``lora/llama-3.2-3B-rank32``."""
        return self.run.experiment_name

    @property
    def last(self) -> Mapping[str, Any]:
        """The last entry of the metrics, which holds the test metric of a finished run."""
        return self.train.metrics[-1] if self.train.metrics else {}

    @property
    def metric(self) -> str | None:
        """The name of the test metric; None if the run did not reach it."""
        metric_keys = [k for k in self.last if k.startswith(TEST)]
        if len(metric_keys) > 1:
            raise invalid_result(
                self.path, f"metrics: {' and '.join(metric_keys)}; expected one test metric"
            )
        if not metric_keys and self.train.status == SUCCESS:
            raise invalid_result(self.path, "metrics: the last entry has no key `test ...`")
        return metric_keys[0].removeprefix(TEST) if metric_keys else None

    @property
    def score(self) -> float | None:
        """The value of the test metric."""
        return None if self.metric is None else self.number(self.last, TEST + self.metric)

    @property
    def file_size(self) -> int | None:
        """Bytes of the checkpoint."""
        return None if self.train.file_size == NO_FILE_SIZE else self.train.file_size

    def number(self, entry: Mapping[str, Any], key: str) -> float | None:
        """Return a number of a metrics entry; None if it is absent or not finite.

        Raises:
            PreflightError: ``hf-result-invalid`` for any other type.
        """
        value = entry.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid_result(self.path, f"metrics: `{key}` is {value!r}, not a number")
        return float(value) if math.isfinite(value) else None

    def total(self, key: str) -> float | None:
        """Return the sum of a time over the metrics; None if any entry lacks it."""
        values = [self.number(entry, key) for entry in self.train.metrics if "train time" in entry]
        known = [v for v in values if v is not None]
        return math.fsum(known) if known and len(known) == len(values) else None


def read_folder(folder: Path) -> list[ResultFile]:
    """Return every result in a folder, sorted by experiment name.

    Raises:
        UsageError: ``no-hf-results``.
        PreflightError: ``hf-result-invalid`` naming file and key, ``hf-result-double``.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UsageError(
            "no-hf-results",
            f"{folder} contains no result files (*.json).",
            "the folder `results` of method_comparison/MetaMathQA or method_comparison/image-gen.",
        )
    results = [read_file(path) for path in paths]
    by_name: dict[str, Path] = {}
    for result in results:
        if result.name in by_name:
            raise PreflightError(
                "hf-result-double",
                f"{by_name[result.name]} and {result.path} are results of the same experiment, "
                f"{result.name}.",
                "keep only the one that counts.",
            )
        by_name[result.name] = result.path
    return sorted(results, key=lambda result: result.name)


def read_file(path: Path) -> ResultFile:
    """Read one result file.

    Raises:
        PreflightError: ``hf-result-invalid`` naming the file and each key.
    """
    try:
        value = read_json(path, RESULT_BYTES)
    except UnreadableFile as error:
        raise invalid_result(path, f"cannot be read: {error}") from error
    if (why := find_unsupported_value(value, finite=False)) is not None:
        raise invalid_result(path, why)
    try:
        file = _File.model_validate(value)
    except ValidationError as error:
        raise invalid_result(
            path, "; ".join(_error_line(item, value) for item in error.errors())
        ) from error
    if file.train_info.status not in STATUSES:
        problem = f"`{file.train_info.status}` is not one of {', '.join(STATUSES)}"
        raise invalid_result(path, f"train_info.status: {problem}")
    result = ResultFile(path, file.run_info, file.train_info, value["meta_info"])
    if result.train.status == SUCCESS and result.score is None and result.metric is not None:
        raise invalid_result(path, f"metrics: `{TEST}{result.metric}` is not a number")
    return result


def invalid_result(path: Path, why: str) -> PreflightError:
    """Return the error for an invalid result file."""
    return PreflightError(
        "hf-result-invalid",
        f"{path}: {why}.",
        "a result file written by method_comparison, or remove the file from the folder.",
    )


def _error_line(item: Any, value: Any) -> str:
    """Describe one validation error; for a missing key, name a similar key that is present."""
    path = [str(part) for part in item["loc"]]
    where = ".".join(path) or "the file"
    if item["type"] != "missing":
        return f"{where}: {item['msg']}, not {str(item['input'])[:60]!r}"
    section = value
    for part in path[:-1]:
        section = section[part]
    near = near_match(path[-1], section)
    return f"{where} is missing" + (f" (there is '{near}')" if near else "")

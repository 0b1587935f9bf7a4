"""Read an experiment folder of ``method_comparison`` as a contender of a study.

``adapter_config.json`` gives the method (full fine-tuning without it), ``training_params.json`` on
top of ``default_training_params.json`` gives the learning rate and, without a study file, the other
settings. A setting that cannot be reproduced exactly becomes a note; one that would change the
method is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bakeoff.core.errors import UsageError, near_match
from bakeoff.core.names import sanitize_name
from bakeoff.core.safe_read import CONFIG_BYTES, UnreadableFile, find_unsupported_value, read_json
from bakeoff.integrations.peft_benchmark.import_notes import ADAMW_WEIGHT_DECAY
from bakeoff.methods import user_defined
from bakeoff.study.config import StudySpec, dump_spec, flatten, parse_spec
from bakeoff.study.planning.trials import GRID_STEP

ADAPTER, PARAMS, DEFAULTS = (
    "adapter_config.json", "training_params.json", "default_training_params.json",
)  # fmt: skip
LEVELS = 3
"""Number of parent folders of ``experiments/<method>/<name>`` to search for the defaults."""
OPTIMIZER_METHODS = {"lora-fa": "lora_fa", "lora+": "lora_plus", "riemannian": "riemannian"}
"""Optimizers of the benchmark that are methods in bakeoff."""
NO_CLIP = 1e9
"""A gradient norm that no step reaches; 0 means no clipping in the benchmark."""
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "bf16"}
QUANTIZED = {"int4": "nf4", "int8": "int8"}
OTHER_BENCHMARK = "dino_model_id"

Positive = Annotated[int, Field(ge=1)]


class Params(BaseModel):
    """The training parameters of an experiment; unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model_id: str
    dtype: Literal["float32", "float16", "bfloat16", "int8", "int4"]
    max_seq_length: Annotated[int, Field(ge=8)]
    batch_size: Positive
    batch_size_eval: Positive
    max_steps: Annotated[int, Field(ge=2)]
    eval_steps: Positive
    compile: bool
    use_gc: bool = False
    query_template: Annotated[str, Field(pattern=r"\{query\}")]
    seed: Annotated[int, Field(ge=0)]
    grad_norm_clip: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    optimizer_type: str
    optimizer_kwargs: dict[str, Any]
    lr_scheduler: Literal["cosine"] | None
    use_amp: bool
    autocast_adapter_dtype: bool
    generation_kwargs: dict[str, Any]
    attn_implementation: str | None
    init_kv_cache_prefix: str | None = None


class Experiment(NamedTuple):
    """A checked experiment; ``adapter`` is the adapter configuration, None for full fine-tuning."""

    name: str
    adapter: dict[str, Any] | None
    params: Params

    @property
    def learning_rate(self) -> float:
        """The peak learning rate."""
        return float(self.params.optimizer_kwargs["lr"])

    @property
    def weight_decay(self) -> float:
        """The weight decay; AdamW's default if the file does not set it."""
        return float(self.params.optimizer_kwargs.get("weight_decay", ADAMW_WEIGHT_DECAY))


def read_experiment(folder: Path, defaults: Path | None) -> Experiment:
    """Read an experiment folder.

    ``defaults`` is the file of default parameters; None searches the parent folders for it.

    Raises:
        UsageError: ``hf-experiment-missing``, ``hf-defaults-missing``, ``hf-params-invalid``,
            ``hf-experiment-unsupported``.
    """
    whole = folder.resolve()
    present = [n for n in (ADAPTER, PARAMS) if (whole / n).is_file()]
    if not present:
        raise UsageError(
            "hf-experiment-missing",
            f"{folder} contains neither {ADAPTER} nor {PARAMS}.",
            "an experiment of method_comparison: MetaMathQA/experiments/<method>/<name>.",
        )
    above = [parent / DEFAULTS for parent in whole.parents[:LEVELS]]
    base = defaults or next((path for path in above if path.is_file()), None)
    if base is None:
        raise UsageError(
            "hf-defaults-missing",
            f"The {LEVELS} folders above {folder} contain no {DEFAULTS}.",
            "`--hf-defaults FILE`.",
        )
    overrides = _read_json(whole / PARAMS) if PARAMS in present else {}
    params = _validate({**_read_json(base), **overrides}, whole / PARAMS, base, overrides)
    adapter = _read_json(whole / ADAPTER) if ADAPTER in present else None
    name = sanitize_name(f"{whole.parent.name}--{whole.name}") if adapter is not None else "full"
    return Experiment(name, adapter, params)


def add_contender(spec: StudySpec, experiment: Experiment) -> StudySpec:
    """Return the study with the experiment as its last contender.

    The learning rates to try are a grid around the experiment's own.

    Raises:
        UsageError: ``hf-experiment-there``; ``unknown-peft-type`` with the near match.
    """
    name, value = experiment.name, dump_spec(spec)
    table: dict[str, Any] = {}
    if name in spec.method_names:
        known = spec.method.get(name)
        if name != "full" or (known is not None and known.learning_rates is not None):
            raise UsageError(
                "hf-experiment-there",
                f"The study already has a method '{name}'.",
                "remove that method from the study, or leave out --hf-experiment.",
            )
        table = value["method"].get(name, {})
    else:
        value["methods"]["contenders"].append(name)
    if experiment.adapter is not None:
        config = user_defined.method_arguments(experiment.adapter)
        peft = user_defined.config_class_of(str(experiment.adapter.get("peft_type")))
        table = {"kind": "peft", "peft": peft, "config": config}
    settings, rate = spec.budget.settings, experiment.learning_rate
    steps = range(-(settings // 2), settings - settings // 2)
    table["learning_rates"] = [
        rate if not s else float(f"{rate * GRID_STEP**s:.3g}") for s in steps
    ]
    value["method"][name] = table
    if spec.budget.hours is not None:
        value["budget"].pop("steps", None)  # the time budget chooses them
    return parse_spec(value)


def study_tables(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment's training parameters as tables of a study file."""
    params = experiment.params
    cosine = params.lr_scheduler == "cosine"
    base: dict[str, Any] = {"model": params.model_id}
    engine: dict[str, Any] = {"evaluation_batch_size": params.batch_size_eval}
    if params.dtype in QUANTIZED:
        base["quantize"] = QUANTIZED[params.dtype]
    else:
        engine["precision"] = DTYPES[params.dtype]
    if params.compile:
        engine["compile"] = "on"
    if params.use_gc:
        engine["checkpointing"] = "on"
    task: dict[str, Any] = {"max_length": params.max_seq_length}
    if "max_new_tokens" in params.generation_kwargs:
        task["max_new_tokens"] = params.generation_kwargs["max_new_tokens"]
    return {
        "seed": params.seed,
        "base": base,
        "task": task,
        "budget": {
            "steps": params.max_steps,
            "batch_size": params.batch_size,
            # a cosine from the warm-up to the end has the same mean rate as a linear decay
            "warmup": 0.1 if cosine else 0.0,
            "decay": 0.9 if cosine else 0.0,
            "weight_decay": experiment.weight_decay,
            "clip": params.grad_norm_clip or NO_CLIP,
            "validations": max(1, params.max_steps // params.eval_steps),
        },
        "engine": engine,
    }


def data_columns(experiment: Experiment) -> dict[str, str]:
    """Return the columns for data in the benchmark's format (``query``, ``response``)."""
    return {"prompt": experiment.params.query_template, "completion": "{response}"}


def differing_settings(spec: StudySpec, experiment: Experiment) -> list[str]:
    """Return a line for each setting in which the study, which decides, differs."""
    theirs, ours = flatten(study_tables(experiment)), flatten(dump_spec(spec))
    return [
        f"{key} is {ours.get(key, 'not set')} here and {value} in the experiment: "
        "the study's value is used for all methods."
        for key, value in theirs.items()
        if ours.get(key) != value
    ]


def experiment_notes(experiment: Experiment) -> list[str]:
    """Return a sentence for each setting that is not reproduced exactly."""
    params, lines = experiment.params, []
    if params.lr_scheduler == "cosine":
        lines.append(
            "The experiment's learning rate follows a cosine; here it decays linearly to 0, so "
            "that racing can stop trials (budget.decay = 0.9 has the same mean rate)."
        )
    lines.append(
        "The experiment's loss covers question and answer; here only the completion counts."
    )
    if "weight_decay" not in params.optimizer_kwargs:
        lines.append(
            f"{PARAMS} replaces optimizer_kwargs as a whole and sets no weight decay, so the "
            f"experiment uses AdamW's default, {ADAMW_WEIGHT_DECAY}."
        )
    if params.dtype == "int4":
        lines.append("The experiment's int4 is bitsandbytes' fp4; here 4-bit quantization is nf4.")
    if params.dtype == "float16":
        lines.append("The experiment's base is in float16; here it is in bf16.")
    if params.init_kv_cache_prefix is not None:
        lines.append(
            "init_kv_cache_prefix is ignored: the prefix has PEFT's default initialisation."
        )
    if not params.autocast_adapter_dtype:
        lines.append("autocast_adapter_dtype = false is ignored: adapters train in fp32.")
    for key in ("use_amp", "attn_implementation"):
        if getattr(params, key):
            lines.append(f"{key} is ignored: it changes only speed and memory, up to rounding.")
    sampling = sorted(params.generation_kwargs.keys() - {"max_new_tokens", "max_length"})
    if sampling:
        lines.append(f"Completions are generated greedily; ignored: {', '.join(sampling)}.")
    return lines


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path, CONFIG_BYTES)
    except UnreadableFile as error:
        raise _invalid(path, f"cannot be read: {error}", "repair the file.") from error
    if not isinstance(value, dict):
        raise _invalid(path, "is not a JSON object", "repair the file.")
    if (why := find_unsupported_value(value)) is not None:
        raise _invalid(path, f"cannot be used: {why}", "repair the file.")
    return value


def _validate(
    merged: Mapping[str, Any], path: Path, defaults: Path, overrides: Mapping[str, Any]
) -> Params:
    """Check the merged parameters; an error names the file that the key came from."""
    if OTHER_BENCHMARK in merged:
        raise _unsupported(
            f"{defaults} belongs to the image-generation benchmark", "an experiment of MetaMathQA."
        )
    try:
        params = Params.model_validate(dict(merged))
    except ValidationError as error:
        item = error.errors()[0]
        key = str(item["loc"][0])
        file = path if key in overrides else defaults
        if item["type"] == "extra_forbidden":
            near = near_match(key, Params.model_fields)
            hint = f"rename it to '{near}'." if near else f"remove `{key}`."
            raise _invalid(file, f"has the unknown key `{key}`", hint) from error
        where = ".".join(map(str, item["loc"]))
        raise _invalid(file, f"`{where}`: {item['msg']}", "correct that key.") from error
    _check_optimizer(params, path if "optimizer_kwargs" in overrides else defaults)
    return params


def _check_optimizer(params: Params, path: Path) -> None:
    kind, arguments = params.optimizer_type, params.optimizer_kwargs
    if kind in OPTIMIZER_METHODS:
        method = OPTIMIZER_METHODS[kind]
        raise _unsupported(
            f"optimizer_type = '{kind}' makes this another method",
            f'`contenders = ["{method}"]`, which is that method (`bakeoff methods {method}`).',
        )
    if kind != "AdamW":
        raise _unsupported(
            f"optimizer_type = '{kind}' is not supported: every method trains with AdamW", "AdamW."
        )
    for key in arguments:
        if key not in ("lr", "weight_decay"):
            near = near_match(key, ("lr", "weight_decay"))
            hint = f"rename it to '{near}'." if near else "only lr and weight_decay are supported."
            raise _invalid(path, f"has the unknown key `optimizer_kwargs.{key}`", hint)
    for key in ("lr", "weight_decay"):
        value = arguments.get(key, 0.0 if key == "weight_decay" else None)
        good = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (value > 0 if key == "lr" else value >= 0)
        )
        if not good:
            raise _invalid(
                path, f"`optimizer_kwargs.{key}` is {value!r}", "a finite number above 0."
            )


def _invalid(path: Path, why: str, try_: str) -> UsageError:
    return UsageError("hf-params-invalid", f"{path} {why}.", try_)


def _unsupported(why: str, try_: str) -> UsageError:
    return UsageError("hf-experiment-unsupported", f"{why}.", try_)

"""An experiment folder of ``method_comparison`` as a contender of a study.

Read by ``bakeoff run --hf-experiment``: ``adapter_config.json`` gives the method (without it: full
fine-tuning), ``training_params.json`` over ``default_training_params.json`` its learning rate and,
where no study file states them, the conditions. What cannot be taken over as it is comes back as a
note in plain words; what would change the method is refused.
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
"""``experiments/<method>/<name>`` lies so far below the defaults."""
OPTIMIZER_METHODS = {"lora-fa": "lora_fa", "lora+": "lora_plus", "riemannian": "riemannian"}
"""Optimizers of theirs that are methods here."""
NO_CLIP = 1e9
"""A gradient norm that no step reaches: their 0 means no clipping."""
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "bf16"}
QUANTIZED = {"int4": "nf4", "int8": "int8"}
OTHER_BENCHMARK = "dino_model_id"

Positive = Annotated[int, Field(ge=1)]


class Params(BaseModel):
    """What ``training_params.json`` over the defaults may say; unknown keys are refused."""

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
    """A checked experiment; ``adapter`` is what ``adapter_config.json`` says, None for full."""

    name: str
    adapter: dict[str, Any] | None
    params: Params

    @property
    def learning_rate(self) -> float:
        """Its peak learning rate."""
        return float(self.params.optimizer_kwargs["lr"])

    @property
    def weight_decay(self) -> float:
        """Its weight decay: AdamW's own where the file names none."""
        return float(self.params.optimizer_kwargs.get("weight_decay", ADAMW_WEIGHT_DECAY))


def read_experiment(folder: Path, defaults: Path | None) -> Experiment:
    """Read an experiment folder; ``defaults`` is their file, searched for above if not given.

    Raises:
        UsageError: ``hf-experiment-missing``, ``hf-defaults-missing``, ``hf-params-invalid``,
            ``hf-experiment-unsupported``.
    """
    whole = folder.resolve()
    found = [n for n in (ADAPTER, PARAMS) if (whole / n).is_file()]
    if not found:
        raise UsageError(
            "hf-experiment-missing",
            f"{folder} holds neither {ADAPTER} nor {PARAMS}.",
            "an experiment of method_comparison: MetaMathQA/experiments/<method>/<name>.",
        )
    above = [parent / DEFAULTS for parent in whole.parents[:LEVELS]]
    base = defaults or next((path for path in above if path.is_file()), None)
    if base is None:
        raise UsageError(
            "hf-defaults-missing",
            f"There is no {DEFAULTS} in the {LEVELS} folders above {folder}.",
            "`--hf-defaults FILE`.",
        )
    own = _read_json(whole / PARAMS) if PARAMS in found else {}
    params = _validate({**_read_json(base), **own}, whole / PARAMS, base, own)
    adapter = _read_json(whole / ADAPTER) if ADAPTER in found else None
    name = sanitize_name(f"{whole.parent.name}--{whole.name}") if adapter is not None else "full"
    return Experiment(name, adapter, params)


def add_contender(spec: StudySpec, experiment: Experiment) -> StudySpec:
    """Return the study with the experiment as its last contender, its own rate among the settings.

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
                f"The study has a method '{name}' already.",
                "the study without it, or without --hf-experiment.",
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
        value["budget"].pop("steps", None)  # hours choose them
    return parse_spec(value)


def study_tables(experiment: Experiment) -> dict[str, Any]:
    """Return its training parameters as tables of a study file."""
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
            # a cosine from the warm-up to the end has the mean rate of a line there
            "warmup": 0.1 if cosine else 0.0,
            "decay": 0.9 if cosine else 0.0,
            "weight_decay": experiment.weight_decay,
            "clip": params.grad_norm_clip or NO_CLIP,
            "validations": max(1, params.max_steps // params.eval_steps),
        },
        "engine": engine,
    }


def data_columns(experiment: Experiment) -> dict[str, str]:
    """Return their template as columns, for data in their format (``query``, ``response``)."""
    return {"prompt": experiment.params.query_template, "completion": "{response}"}


def differing_settings(spec: StudySpec, experiment: Experiment) -> list[str]:
    """Say where the study's conditions are others than the experiment's: the study's hold."""
    theirs, ours = flatten(study_tables(experiment)), flatten(dump_spec(spec))
    return [
        f"{key} is {ours.get(key, 'not set')} here and {value} in the experiment: "
        "the study's holds for all."
        for key, value in theirs.items()
        if ours.get(key) != value
    ]


def experiment_notes(experiment: Experiment) -> list[str]:
    """Say in plain words what is not, or not just so, as in the experiment."""
    params, said = experiment.params, []
    if params.lr_scheduler == "cosine":
        said.append(
            "Their learning rate falls along a cosine; here it falls to 0 along a line, so that a "
            "race can stop trials (budget.decay = 0.9 has the same mean rate)."
        )
    said.append("Their loss is over question and answer, here it is over the completion alone.")
    if "weight_decay" not in params.optimizer_kwargs:
        said.append(
            f"{PARAMS} replaces optimizer_kwargs as a whole and names no weight decay, so the "
            f"experiment has AdamW's {ADAMW_WEIGHT_DECAY}."
        )
    if params.dtype == "int4":
        said.append("Their int4 is bitsandbytes' fp4; here 4 bits are nf4.")
    if params.dtype == "float16":
        said.append("Their base is in float16; here it is in bf16.")
    if params.init_kv_cache_prefix is not None:
        said.append("init_kv_cache_prefix is not taken over: the prefix starts as PEFT starts it.")
    if not params.autocast_adapter_dtype:
        said.append("autocast_adapter_dtype = false is not taken over: adapters train in fp32.")
    for key in ("use_amp", "attn_implementation"):
        if getattr(params, key):
            said.append(f"{key} is not taken over: it changes speed and memory, within rounding.")
    sampling = sorted(params.generation_kwargs.keys() - {"max_new_tokens", "max_length"})
    if sampling:
        said.append(f"Answers are generated greedily; not taken over: {', '.join(sampling)}.")
    return said


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path, CONFIG_BYTES)
    except UnreadableFile as error:
        raise _invalid(path, f"cannot be read: {error}", "mend the file.") from error
    if not isinstance(value, dict):
        raise _invalid(path, "is no JSON object", "mend the file.")
    if (why := find_unsupported_value(value)) is not None:
        raise _invalid(path, f"cannot be taken: {why}", "mend the file.")
    return value


def _validate(
    merged: Mapping[str, Any], path: Path, defaults: Path, own: Mapping[str, Any]
) -> Params:
    """Check the merged parameters; a wrong key is looked for in the file that it came from."""
    if OTHER_BENCHMARK in merged:
        raise _unsupported(f"{defaults} is of image generation", "an experiment of MetaMathQA.")
    try:
        params = Params.model_validate(dict(merged))
    except ValidationError as error:
        item = error.errors()[0]
        key = str(item["loc"][0])
        file = path if key in own else defaults
        if item["type"] == "extra_forbidden":
            near = near_match(key, Params.model_fields)
            hint = f"rename it to '{near}'." if near else f"take `{key}` out."
            raise _invalid(file, f"has the unknown key `{key}`", hint) from error
        where = ".".join(map(str, item["loc"]))
        raise _invalid(file, f"`{where}`: {item['msg']}", "mend that key.") from error
    _check_optimizer(params, path if "optimizer_kwargs" in own else defaults)
    return params


def _check_optimizer(params: Params, path: Path) -> None:
    kind, arguments = params.optimizer_type, params.optimizer_kwargs
    if kind in OPTIMIZER_METHODS:
        method = OPTIMIZER_METHODS[kind]
        raise _unsupported(
            f"optimizer_type = '{kind}' makes another method of it",
            f'`contenders = ["{method}"]`, which is that method (`bakeoff methods {method}`).',
        )
    if kind != "AdamW":
        raise _unsupported(
            f"optimizer_type = '{kind}': every method trains with AdamW here", "AdamW."
        )
    for key in arguments:
        if key not in ("lr", "weight_decay"):
            near = near_match(key, ("lr", "weight_decay"))
            hint = f"rename it to '{near}'." if near else "lr and weight_decay are taken over."
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

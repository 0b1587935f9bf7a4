"""The inputs of a study: `[base]`, `[data]`, `[task]` and `[forgetting]` of a study file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from bakeoff.data.encoding import check_encoding
from bakeoff.study.config.base import LARGEST, Count, Reference, Revision, SpecTable

METHOD, JOINT = "method", "joint"
"""Words for `task.head_learning_rate` and `task.saved_learning_rate`."""


COLUMN, NEAR_DUPLICATES, NO_GROUPS = "column", "near-duplicates", "none"
"""Values of ``DataSpec.item_groups``."""


class BaseSpec(SpecTable):
    """The frozen base model."""

    model: Reference
    """A folder with safetensors weights, a hub id, or `asset:<name>` (see `bakeoff assets`)."""
    revision: Revision | None = None
    """Commit or tag of a hub model; not for a local folder."""
    trust_remote_code: bool = False
    """Run the code that comes with this base. A hub model then needs `revision`: the 40 digits of
    the commit whose code you have read (SECURITY.md)."""
    quantize: Literal["nf4", "int8"] | None = None
    """Quantize the base's linear layers: `nf4` (4 bits, as QLoRA) or `int8`, not the adapters."""
    quantizer: Literal["auto", "bitsandbytes", "torchao"] = "auto"
    """Package for it; `auto` uses the first that is installed; torchao supports only int8."""

    @model_validator(mode="after")
    def _check_quantizer(self) -> BaseSpec:
        if self.quantizer != "auto" and self.quantize is None:
            raise ValueError("`quantizer` needs `quantize`, the format to quantize the base to")
        if self.quantizer == "torchao" and self.quantize == "nf4":
            raise ValueError(
                'torchao does not support "nf4"; quantizer = "bitsandbytes", or "int8"'
            )
        return self


class LimitSpec(SpecTable):
    """The maximum number of rows of a split: a random sample, the same for every method."""

    train: Count | None = None
    validation: Count | None = None
    test: Count | None = None


class DataSpec(SpecTable):
    """The data set. Missing validation or test splits are cut from train, once."""

    train: Reference
    """JSONL, JSON, CSV, TSV or Parquet, or a folder of such files, relative to the study file; or
    a data set on the hub: `"hub:org/name"`, `"hub:org/name/config:split"` (docs/data.md)."""
    validation: Reference | None = None
    """For selecting hyperparameter settings."""
    test: Reference | None = None
    """For the verdict, which is computed from it once."""
    config: str | None = None
    """Configuration (subset) of hub data sets that do not name one."""
    revision: Revision | None = None
    """Commit, branch or tag of the hub data set; the report states the commit."""
    encoding: Annotated[str, AfterValidator(check_encoding)] | None = None
    """Encoding of text files that are not UTF-8, such as `cp1252` for Excel's CSV on Windows."""
    group: str | None = None
    """Column whose equal values stay in one split when splits are cut, and make test items one
    group in the verdict's error (author, document, template)."""
    item_groups: Literal["column", "near-duplicates", "none"] = "column"
    """Test items that count as one group: those with equal values in the `group` column; with
    `near-duplicates` also those with nearly the same prompt; or `none`, all are independent."""
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.15
    """Share of the groups that are cut for validation, if no validation file is given."""
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.25
    """Share of the groups that are cut for test, if no test file is given."""
    limit: LimitSpec = LimitSpec()
    """Largest number of rows of each split."""
    rename: dict[str, str] = {}
    """Column -> new name, in the splits that have it, if the splits name their columns
    differently."""
    columns: dict[str, str] = {}
    """Field of the task -> column name, or a template such as `"Q: {question}\\nA: "`."""

    @model_validator(mode="after")
    def _check_hub_arguments(self) -> DataSpec:
        references = (self.train, self.validation, self.test)
        if not any(r is not None and r.startswith("hub:") for r in references):
            for name in ("config", "revision"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f'`{name}` needs a data set on the hub: train = "hub:org/name"'
                    )
        return self


class ForgettingSpec(SpecTable):
    """Forgetting of general text, measured for every final trial of a causal LM."""

    text: Reference = "default"
    """`default` (20 documents that ship with bakeoff, 3,500 tokens), `off`, or your own file,
    relative to the study file: .txt (documents separated by lines with a single `%`) or rows with a
    `text` column."""
    max_length: Annotated[int, Field(ge=8, le=LARGEST)] = 256
    """Tokens of each document; longer ones are truncated."""


class TaskSpec(SpecTable):
    """The task and its metric."""

    kind: str
    """`classify` (text -> label), `sft` (prompt -> completion, or chat messages) or `choice`
    (prompt, choices -> the right one, by log-likelihood)."""
    options: dict[str, Any] = {}
    """Further options of the task (docs/choice.md), such as `normalise` for `choice`."""
    metric: Reference | None = None
    """Primary metric (docs/metrics.md), or your own function: `"score.py:score"`, the file relative
    to the study file; default: the task's."""
    metric_options: dict[str, Any] = {}
    """Options of the metric, such as `pattern` for `regex`; every metric has `timeout` (s)."""
    margin: Annotated[float, Field(gt=0)] = 0.02
    """Smallest difference in the metric that you care about, in the metric's unit."""
    head_learning_rate: Annotated[float, Field(gt=0)] | Literal["method", "joint"] | None = None
    """Learning rate of the task's new output layer, the same for every method. Default: tuned once
    on that layer alone. `method`: the method's own rate; `joint`: searched jointly with the
    method's (needs `tune = "all"`)."""
    saved_learning_rate: Annotated[float, Field(gt=0)] | Literal["method"] | None = None
    """Learning rate of modules of the base that a method trains as a whole beside its own weights
    (`modules_to_save`, `trainable_token_indices`), the same for every method. Default: that of full
    fine-tuning; `method`: the method's own rate."""
    max_length: Annotated[int, Field(ge=8, le=LARGEST)] | None = None
    """Longest example in tokens; longer ones are truncated, and counted in a warning. Default: what
    covers 95 % of the training rows, at most 4,096 and the base's positions (docs/studies.md)."""
    max_new_tokens: Count | None = None
    """Longest generated answer; default: the longest completion, plus 8."""
    chat: bool = False
    """Render prompt and completion through the chat template, as a user and an assistant message;
    a `messages` column always is."""
    system: str | None = None
    """System message for every conversation that has none."""
    supervise: Literal["all", "last", "each"] | None = None
    """Assistant turns that the loss is on: `all`, the `last`, or `each` as the last of a row of its
    own; default: all that the chat template writes alike once more messages follow."""
    chat_template: Reference | None = None
    """Jinja file that replaces the base's chat template, relative to the study file."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables of the chat template, such as `{ enable_thinking = false }`."""

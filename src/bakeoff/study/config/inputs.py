"""What a study is about: `[base]`, `[data]` and `[task]` of a study file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bakeoff.study.config.base import LARGEST, Count, Reference, Revision, SpecTable


class BaseSpec(SpecTable):
    """The frozen base model."""

    model: Reference
    """A folder with safetensors weights, a hub id, or `asset:<name>` (see `bakeoff assets`)."""
    revision: Revision | None = None
    """Commit or tag of a hub model; a local folder takes none."""
    trust_remote_code: bool = False
    """Run the code that this base brings along. A hub model then needs `revision`: the 40 digits
    of the commit whose code you have read (SECURITY.md)."""
    quantize: Literal["nf4", "int8"] | None = None
    """Round the base's linear layers: `nf4` (4 bits, as QLoRA) or `int8`; adapters stay exact."""
    quantizer: Literal["auto", "bitsandbytes", "torchao"] = "auto"
    """Package that rounds them; `auto` takes the first that is there; torchao makes int8 alone."""

    @model_validator(mode="after")
    def _quantizer_fits(self) -> BaseSpec:
        if self.quantizer != "auto" and self.quantize is None:
            raise ValueError("`quantizer` says who rounds the base; `quantize` says to what")
        if self.quantizer == "torchao" and self.quantize == "nf4":
            raise ValueError('torchao makes no "nf4"; quantizer = "bitsandbytes", or "int8"')
        return self


class LimitSpec(SpecTable):
    """Take only so many rows of a split: a random sample, the same for every method."""

    train: Count | None = None
    validation: Count | None = None
    test: Count | None = None


class DataSpec(SpecTable):
    """Where the rows are. Without validation or test they are cut from train, once."""

    train: Reference
    """JSONL, JSON, CSV, TSV or Parquet, or a folder of such files, relative to the study file; or
    a data set of the hub: `"hub:org/name"`, `"hub:org/name/config:split"` (docs/data.md)."""
    validation: Reference | None = None
    """Settings are chosen on it."""
    test: Reference | None = None
    """The verdict is read from it, once."""
    config: str | None = None
    """Configuration (subset) of the hub's data sets that name none."""
    revision: Revision | None = None
    """Commit, branch or tag of the hub's data set; the report says which commit it was."""
    group: str | None = None
    """Column whose rows stay in one split when splits are cut (template, author, document)."""
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.15
    """Share of the groups cut off for validation, if no validation file is given."""
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.25
    """Share of the groups cut off for test, if no test file is given."""
    limit: LimitSpec = LimitSpec()
    """Largest number of rows of each split."""
    rename: dict[str, str] = {}
    """Column -> the name it gets, in the splits that have it: where test calls its columns
    otherwise than train."""
    columns: dict[str, str] = {}
    """Field of the task -> column name, or a template such as `"Q: {question}\\nA: "`."""

    @model_validator(mode="after")
    def _hub_arguments_are_used(self) -> DataSpec:
        references = (self.train, self.validation, self.test)
        if not any(r is not None and r.startswith("hub:") for r in references):
            for name in ("config", "revision"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f'`{name}` is of a data set of the hub: train = "hub:org/name"'
                    )
        return self


class ForgettingSpec(SpecTable):
    """What the base forgets of general text, measured for every final trial of a causal LM."""

    text: Reference = "default"
    """`default` (20 documents that ship with bakeoff, 3,500 tokens), `off`, or a file of yours,
    relative to the study file: .txt (documents divided by lines with a single `%`) or rows with a
    `text` column."""
    max_length: Annotated[int, Field(ge=8, le=LARGEST)] = 256
    """Tokens of each document; the rest of a longer one is cut."""


class TaskSpec(SpecTable):
    """What is learnt and how it is scored."""

    kind: str
    """`classify` (text -> label), `sft` (prompt -> completion, or chat messages) or `choice`
    (prompt, choices -> the right one, by log-likelihood)."""
    options: dict[str, Any] = {}
    """What the task takes beside (docs/choice.md), such as `normalise` for `choice`."""
    metric: Reference | None = None
    """Primary metric (docs/metrics.md), or a function of yours: `"score.py:score"`, the file
    relative to the study file; the task's own default if not given."""
    metric_options: dict[str, Any] = {}
    """What the metric takes, such as `pattern` for `regex`; `timeout` (seconds an item) for all."""
    margin: Annotated[float, Field(gt=0)] = 0.02
    """Smallest difference in the metric that you care about, in the metric's unit."""
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Rate of the task's fresh output layer, the same for every method; default: the setting's."""
    max_length: Annotated[int, Field(ge=8, le=LARGEST)] = 256
    """Longest example in tokens; longer ones are cut, and counted in a warning."""
    max_new_tokens: Count | None = None
    """Longest generated answer; default: the longest completion in train, plus 8."""
    chat: bool = False
    """Render prompt and completion through the chat template, as one question and its answer;
    a `messages` column always is."""
    system: str | None = None
    """System message in front of every conversation that has none of its own."""
    chat_template: Reference | None = None
    """Jinja file used in place of the base's chat template, relative to the study file."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables that the chat template takes, such as `{ enable_thinking = false }`."""

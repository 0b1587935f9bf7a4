"""The interface of a task: supervised tokens, batches, losses and predictions.

The parent process reads the class attributes and ``check``, which describe the data; the training
loop and the evaluation use the rest.

Tensor axes: B = rows of a batch, T = tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from bakeoff.core.errors import PreflightError, UsageError, near_match
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row
from bakeoff.data.special_tokens import added_tokens, token_texts
from bakeoff.data.templates import cell_text, columns_of, render_template
from bakeoff.engine.safe_loading import from_pretrained_kwargs

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bakeoff.engine.generation.generate import GenerationRequest

IGNORE = -100
"""Label of a token that is not supervised."""
POOLER = "pooler"
"""Name of the module that may be missing from a checkpoint of an encoder."""
HEAD = "head"
"""Option of a task on a base whose head is not just the layer that ``Task.heads`` names:
``{"modules": names of the layers that are drawn at random, "replaced": whether the base's files
have such layers, which are not used}``."""
NO_LIMIT = 2**31 - 1
"""A `max_length` that truncates nothing."""


@dataclass(frozen=True)
class Example:
    """One tokenised row: its tokens, and a label for each of them or one class."""

    tokens: tuple[int, ...]
    labels: tuple[int, ...]


class Batch(NamedTuple):
    """One padded batch; ``lengths`` counts the real tokens of each row, without padding."""

    inputs: dict[str, Tensor]
    targets: Any
    lengths: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Number of examples in the batch."""
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """Number of real tokens in the batch."""
        return sum(self.lengths)


class ItemLoss(NamedTuple):
    """Summed loss of each item ``[B]`` and its number of supervised units ``[B]``."""

    sums: Tensor
    counts: Tensor


class Answer(NamedTuple):
    """One answer; ``cut``: the limit of new tokens ended it, not an end token."""

    text: str
    cut: bool = False


class TaskCheck(NamedTuple):
    """Result of a task's check of valid rows: its completed options, and the issues."""

    options: dict[str, Any]
    issues: tuple[DataIssue, ...] = ()


class RowError(PreflightError):
    """A row that cannot be used, by its ``position`` in the rows passed; ``what`` is a clause."""

    def __init__(self, position: int, code: str, what: str, try_: str) -> None:
        super().__init__(code, f"{what} in row {position + 1}.", try_)
        self.args = (position, code, what, try_)  # pickle rebuilds the error from these
        self.position, self.what = position, what


class Task(ABC):
    """A kind of supervised task. ``options`` are JSON values and part of a trial's id."""

    fields: ClassVar[Mapping[str, str]]
    """Field -> default column."""
    other_fields: ClassVar[tuple[Mapping[str, str], ...]] = ()
    """Alternative sets of fields that rows may have instead."""
    default_metric: ClassVar[str]
    """Metric of a study that names none. Metrics declare the other tasks that they fit."""
    task_type: ClassVar[str]
    """PEFT's name for the model family."""
    auto_model: ClassVar[str]
    """Class of transformers that loads the base with this task's output layer."""
    heads: tuple[str, ...] = ()
    """Names of the randomly initialised output layer in models of this task. An instance has those
    of its base, see ``HEAD``."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Fields that a row may leave empty; those that are structured may be missing too."""
    structured: ClassVar[frozenset[str]] = frozenset()
    """Fields whose column holds more than text, which the task parses itself."""
    needs_end_token: ClassVar[bool] = False
    """Whether the model must learn to end its completions."""
    scores_validation: ClassVar[bool]
    """Whether the metric is cheap enough to compute on validation during the search too."""
    scores_base: ClassVar[bool]
    """Whether the base model can be scored: it has no randomly initialised output layer."""
    generates: ClassVar[bool] = False
    """Whether answers are generated: such a task has ``prompts`` and ``decode``."""
    secondary: ClassVar[tuple[str, ...]] = ()
    """Further statistics that are reported, by their names in ``analysis.secondary``."""
    option_values: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Options of this task (``[task.options]``) -> their allowed values, the default first."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        if HEAD in options:
            self.heads = tuple(options[HEAD]["modules"])

    @classmethod
    def columns(cls, given: Mapping[str, str], present: Iterable[str] = ()) -> dict[str, str]:
        """Return the column or template of each field; the user's override the defaults.

        If a task has alternative sets of fields, the fields in ``given`` decide which one applies;
        without any, the ``present`` columns do.

        Raises:
            PreflightError: ``unknown-field``, ``fields-mixed``.
        """
        alternatives, available = (cls.fields, *cls.other_fields), set(present)
        known = list(dict.fromkeys(field for fields in alternatives for field in fields))
        for name in given:
            if name not in known:
                raise PreflightError(
                    "unknown-field",
                    f"[data.columns] names '{name}', which this task does not have.",
                    f"its fields are: {', '.join(known)}.",
                )
        possible = [fields for fields in alternatives if given.keys() <= fields.keys()]
        if not possible:
            raise PreflightError(
                "fields-mixed",
                f"[data.columns] names {', '.join(given)}, which cannot be combined.",
                "; or ".join(", ".join(fields) for fields in alternatives) + ".",
            )
        fitting = (
            fields
            for fields in possible
            if all(f in given or column in available for f, column in fields.items())
        )
        return {**next(fitting, possible[0]), **given}

    @classmethod
    def describe_columns(cls, given: Mapping[str, str], columns: Mapping[str, str]) -> str | None:
        """Return one line on columns that ``columns`` recognised and the user has not named."""
        return None

    @classmethod
    def split_turns(cls, rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
        """Return each row once for each of its supervised turns, as a row that ends with it."""
        return list(rows)

    @classmethod
    def complete_options(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return this task's own options; the user's override the defaults.

        Raises:
            UsageError: ``task-option-unknown`` with the nearest name, ``task-option``.
        """
        for name, value in given.items():
            if name not in cls.option_values:
                near = near_match(name, cls.option_values)
                hint = f"did you mean '{near}'? " if near else ""
                raise UsageError(
                    "task-option-unknown",
                    f"This task has no option '{name}' ([task.options]).",
                    f"{hint}Its options are: {', '.join(cls.option_values) or 'none'}.",
                )
            if value not in cls.option_values[name]:
                raise UsageError(
                    "task-option",
                    f"[task.options]: `{name}` is {value!r}.",
                    f"one of: {', '.join(cls.option_values[name])}.",
                )
        return {**{name: values[0] for name, values in cls.option_values.items()}, **given}

    @classmethod
    def texts(cls, row: Row, columns: Mapping[str, str]) -> tuple[str, str]:
        """Return a row's question and answer, without the fixed text of a template.

        Duplicates, leaks and contradictions are detected by them.
        """
        question, *_, answer = (columns[field] for field in cls.fields)
        texts = (cell_text(row, column) for column in columns_of(question))
        return "\n".join(texts), render_template(answer, row)

    def question(self, row: Row) -> str:
        """Return a row's question as it is displayed next to an answer."""
        return self.texts(row, self.options["columns"])[0]

    @classmethod
    def check(cls, splits: Mapping[str, Sequence[Row]], options: dict[str, Any]) -> TaskCheck:
        """Complete the options from valid rows, and report issues of this task with them."""
        return TaskCheck(options)

    def resolve(
        self, tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Sequence[Row]]
    ) -> TaskCheck:
        """Complete the options with what only the tokenizer tells, and report what it changes.

        An option is added only where tokens or answers would differ without it, so that the ids of
        all other trials stay what they were.
        """
        return TaskCheck(self.options)

    def added_tokens_text(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return a sentence on the special tokens that the tokenizer adds, None without any."""
        before, after = (" ".join(token_texts(tokenizer, x)) for x in added_tokens(tokenizer))
        parts = [f"{x} {place}" for x, place in ((before, "before"), (after, "after")) if x]
        return f"The tokenizer puts {' and '.join(parts)} every text." if parts else None

    def end_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the tokens that end a completion."""
        return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]

    def supervised_mask(self, example: Example) -> tuple[list[bool], str | None]:
        """Return which tokens are supervised, and the label of the whole row if it has one."""
        return [label >= 0 for label in example.labels], None

    def without_length_limit(self) -> Self:
        """Return this task without a limit on the length of its examples."""
        return type(self)({**self.options, "max_length": NO_LIMIT})

    def model_arguments(self) -> dict[str, Any]:
        """Return this task's arguments of ``from_pretrained``, such as the number of labels."""
        return {}

    def load_model(self, path: str, revision: str | None, **loading: Any) -> PreTrainedModel:
        """Load the base with this task's output layer, in the dtype of its files.

        ``loading`` goes to ``from_pretrained`` and overrides the safe defaults. A randomly
        initialised output layer depends on torch's seed.

        Raises:
            PreflightError: ``base-incomplete``, and what ``check_base_files`` refuses.
        """
        import transformers

        trusted = loading.get("trust_remote_code", False)
        model, info = getattr(transformers, self.auto_model).from_pretrained(
            path,
            use_safetensors=True,
            output_loading_info=True,
            **self.model_arguments(),
            **{"dtype": "auto", **from_pretrained_kwargs(path, revision, trusted), **loading},
        )
        return check_complete(model, info, self.heads)

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Example]:
        """Tokenise rows.

        Raises:
            RowError: a row that cannot be used.
        """

    @abstractmethod
    def batch(
        self,
        examples: Sequence[Example],
        pad_id: int,
        device: str,
        length: int | None = None,
        units: int | None = None,
    ) -> Batch:
        """Pad examples into one batch on ``device``, to ``length`` tokens and ``units`` targets.

        None pads to the longest example, and to no more targets than there are.
        """

    @abstractmethod
    def item_losses(self, model: nn.Module, batch: Batch) -> ItemLoss:
        """Return each item's summed loss."""

    @abstractmethod
    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        device: str,
    ) -> list[str]:
        """Return the prediction for each row of one evaluation batch."""

    def token_issues(
        self,
        tokenizer: PreTrainedTokenizerBase,
        split: str,
        rows: Sequence[Row],
        positions: int | None,
    ) -> list[DataIssue]:
        """Return issues with tokens that are not in the result of ``encode``.

        ``positions`` is the longest input that the base supports, None without a limit.
        """
        return []

    def batch_rows(self, rows: Sequence[Row]) -> int:
        """Return the number of rows in the batch that ``predict`` makes of these rows."""
        return len(rows)

    def prompts(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> GenerationRequest:
        """Return the prompts of rows, and when a completion ends."""
        raise NotImplementedError

    def decode(
        self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]]
    ) -> list[str]:
        """Return generated completions as text."""
        raise NotImplementedError

    def answers(
        self,
        tokenizer: PreTrainedTokenizerBase,
        request: GenerationRequest,
        tokens: Sequence[Sequence[int]],
    ) -> list[Answer]:
        """Return generated completions as text, and which of them the limit has cut."""
        texts = self.decode(tokenizer, tokens)
        return [Answer(text, request.is_cut(ids)) for text, ids in zip(texts, tokens, strict=True)]

    @abstractmethod
    def references(self, rows: Sequence[Row]) -> list[str]:
        """Return the true answers."""

    def scored_references(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
    ) -> list[str]:
        """Return the true answers as the tokenizer's chat template writes them."""
        return self.references(rows)

    def perfect_answers(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
    ) -> list[Answer]:
        """Return what would be recorded for a model that learnt every row perfectly.

        The reference is encoded as in training and decoded as in evaluation.
        """
        return [Answer(text) for text in self.references(rows)]

    def chance(self, rows: Sequence[Row]) -> list[float] | None:
        """Return each item's probability of a right answer at random; None if unknown."""
        return None


class CausalTask(Task):
    """Base of tasks on a causal LM: model, batches, and the loss on supervised tokens."""

    task_type = "CAUSAL_LM"
    auto_model = "AutoModelForCausalLM"
    scores_base = True

    def batch(
        self,
        examples: Sequence[Example],
        pad_id: int,
        device: str,
        length: int | None = None,
        units: int | None = None,
    ) -> Batch:
        """Pad on the right; find the supervised positions on the host, to avoid a sync later."""
        from bakeoff.engine.loss import SupervisedPositions, supervised_positions

        tokens = [e.tokens for e in examples]
        inputs = pad_inputs(tokens, pad_id, device, length)
        at = supervised_positions(pad_rows([e.labels for e in examples], IGNORE, "cpu"), units)
        targets = SupervisedPositions(*(t.to(device) for t in at))
        return Batch(inputs, targets, tuple(len(t) for t in tokens))

    def added_tokens_text(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return a sentence on the special tokens around a prompt, None without any."""
        before, after = (" ".join(token_texts(tokenizer, x)) for x in added_tokens(tokenizer))
        kept = f"The tokenizer puts {before} before every prompt." if before else ""
        left_out = (
            f"The {after} that the tokenizer puts after every text does not stand between prompt "
            "and completion."
        )
        return " ".join([kept, left_out if after else ""]).strip() or None

    def item_losses(self, model: nn.Module, batch: Batch) -> ItemLoss:
        """Return the summed cross-entropy and the number of supervised tokens of each row."""
        import torch

        from bakeoff.engine.loss import token_losses

        at = batch.targets
        losses = token_losses(model, batch.inputs, at)
        zeros = torch.zeros(batch.rows, device=losses.device)
        sums = zeros.index_add(0, at.rows, losses)
        return ItemLoss(sums, zeros.index_add(0, at.rows, (at.targets >= 0).float()))


def check_complete(
    model: PreTrainedModel, info: Mapping[str, Any], heads: Collection[str]
) -> PreTrainedModel:
    """Return a loaded model after checking that its files contained all of its tensors.

    transformers initialises missing tensors at random and only logs it. With ``heads`` that is
    expected of the layers after the base, and of a pooler, which many checkpoints do not have.
    Tensors of another shape are only expected in the head.

    Raises:
        PreflightError: ``base-incomplete``.
    """
    fresh_head = bool(heads)
    others = (entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"])
    misshapen = sorted(name for name in others if not is_in_head(name, heads))
    if misshapen:
        raise PreflightError(
            "base-incomplete",
            f"{misshapen[0]} has another shape in the base's files than in its config.json.",
            "download the base again completely: its files belong to different models.",
        )
    inside = f"{model.base_model_prefix}." if fresh_head else ""
    absent = sorted(n for n in info["missing_keys"] if n.startswith(inside))
    missing = [n for n in absent if not (fresh_head and POOLER in n.split("."))]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise PreflightError(
            "base-incomplete",
            f"The base's files do not contain {missing[0]}{more}, which would be initialised at "
            "random.",
            "download the base again completely; or use another base: its config.json belongs to "
            "another model, or it was not trained to predict next tokens.",
        )
    return model


def is_in_head(name: str, heads: Collection[str]) -> bool:
    """Tell whether a tensor or module of this name belongs to the output layer ``heads``."""
    return not set(name.split(".")).isdisjoint(heads)


def load_tokenizer(
    path: str, revision: str | None, trusted: bool = False
) -> PreTrainedTokenizerBase:
    """Load the base's tokenizer; one without a padding token pads with its end token.

    Raises:
        PreflightError: what ``check_base_files`` refuses.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        path, **from_pretrained_kwargs(path, revision, trusted)
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the padding token of a tokenizer, 0 without one."""
    return int(tokenizer.pad_token_id or 0)


def pad_inputs(
    tokens: Sequence[Sequence[int]], pad_id: int, device: str, length: int | None
) -> dict[str, Tensor]:
    """Return token ids and attention mask, ``[B, T]``, padded on the right."""
    return {
        "input_ids": pad_rows(tokens, pad_id, device, length=length),
        "attention_mask": pad_rows([[1] * len(t) for t in tokens], 0, device, length=length),
    }


def pad_rows(
    rows: Sequence[Sequence[int]],
    value: int,
    device: str,
    left: bool = False,
    length: int | None = None,
) -> Tensor:
    """Return rows as ``[B, T]``, padded with ``value`` to ``length`` or the longest row."""
    import torch

    longest = length or max(len(r) for r in rows)
    out = torch.full((len(rows), longest), value, dtype=torch.long)
    for i, row in enumerate(rows):
        at = longest - len(row) if left else 0
        out[i, at : at + len(row)] = torch.tensor(row, dtype=torch.long)
    return out.to(device)

"""Tasks: one file each; what is learnt, how a batch looks, how an answer is predicted.

A task module gives ``TASK``, a subclass of ``Task``. Its class attributes and ``check`` describe
the data to the study half, so a task file imports torch and transformers inside the methods that
need them. The loop and the evaluation see only this interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from bakeoff.core.errors import PreflightError, UsageError, near_match
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row, columns_of, render_template
from bakeoff.engine.safe_loading import from_pretrained_kwargs

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bakeoff.engine.generation.generate import GenerationRequest

IGNORE = -100
"""Label of a token that is not supervised."""
POOLER = "pooler"
NO_LIMIT = 2**31 - 1
"""A `max_length` that cuts nothing."""


@dataclass(frozen=True)
class Example:
    """One tokenised row: its tokens, and the labels or the class to learn."""

    tokens: tuple[int, ...]
    labels: tuple[int, ...]


class Batch(NamedTuple):
    """One padded batch; ``lengths`` counts each row's real tokens, padding left out."""

    inputs: dict[str, Tensor]
    targets: Any
    lengths: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many examples the batch has."""
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """How many real tokens the batch has."""
        return sum(self.lengths)


class ItemLoss(NamedTuple):
    """Summed loss of each item ``[B]`` and how many supervised units it has ``[B]``."""

    sums: Tensor
    counts: Tensor


class TaskCheck(NamedTuple):
    """What a task found out about readable rows: its options completed, and what is wrong."""

    options: dict[str, Any]
    faults: tuple[DataIssue, ...] = ()


class RowError(PreflightError):
    """A row that cannot be used, by its ``position`` among those given; ``what`` is a clause."""

    def __init__(self, position: int, code: str, what: str, try_: str) -> None:
        super().__init__(code, f"{what} in row {position + 1}.", try_)
        self.args = (position, code, what, try_)  # what it is made of again when unpickled
        self.position, self.what = position, what


class Task(ABC):
    """What is learnt and how it is predicted. ``options`` are JSON values, part of a trial's id."""

    fields: ClassVar[Mapping[str, str]]
    """Field -> default column."""
    other_fields: ClassVar[tuple[Mapping[str, str], ...]] = ()
    """Other fields that rows may have instead of those."""
    metrics: ClassVar[tuple[str, ...]]
    """Metrics that make sense of the task's answers; the first is the default."""
    task_type: ClassVar[str]
    """PEFT's name for the model family."""
    heads: ClassVar[tuple[str, ...]] = ()
    """Names that the freshly initialised output layer goes by in the models of this task."""
    structured: ClassVar[frozenset[str]] = frozenset()
    """Fields whose column holds more than text, which the task reads itself."""
    needs_end_token: ClassVar[bool] = False
    """Whether the model must learn to end its answers."""
    scores_validation: ClassVar[bool]
    """Whether the metric is cheap enough to take on validation in the search phase too."""

    scores_base: ClassVar[bool]
    """Whether the base can answer before it is trained: no fresh output layer is in its way."""

    generates: ClassVar[bool] = False
    """Whether answers are generated: such a task has ``asked`` and ``said``."""

    secondary: ClassVar[tuple[str, ...]] = ()
    """Numbers that are reported beside the metric (``analysis.secondary`` knows their names)."""

    own_options: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Options of the task's own (``[task.options]``) -> the values they take, the default first."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    @classmethod
    def columns(cls, given: Mapping[str, str], present: Iterable[str] = ()) -> dict[str, str]:
        """Return the column or template of each field, the user's before the default.

        Where a task's rows may have other fields, those that ``given`` names or, without any, the
        ``present`` columns decide.

        Raises:
            PreflightError: ``unknown-field``, ``fields-mixed``.
        """
        ways, there = (cls.fields, *cls.other_fields), set(present)
        known = list(dict.fromkeys(field for way in ways for field in way))
        for name in given:
            if name not in known:
                raise PreflightError(
                    "unknown-field",
                    f"[data.columns] names '{name}', which this task does not have.",
                    f"its fields are: {', '.join(known)}.",
                )
        able = [way for way in ways if given.keys() <= way.keys()]
        if not able:
            raise PreflightError(
                "fields-mixed",
                f"[data.columns] names {', '.join(given)}, which do not go together.",
                "; or ".join(", ".join(way) for way in ways) + ".",
            )
        fits = (way for way in able if all(f in given or c in there for f, c in way.items()))
        return {**next(fits, able[0]), **given}

    @classmethod
    def complete_options(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the task's own options, the user's before the defaults.

        Raises:
            UsageError: ``task-option-unknown`` with the near match, ``task-option``.
        """
        for name, value in given.items():
            if name not in cls.own_options:
                near = near_match(name, cls.own_options)
                hint = f"did you mean '{near}'? " if near else ""
                raise UsageError(
                    "task-option-unknown",
                    f"This task has no option '{name}' ([task.options]).",
                    f"{hint}Its options are: {', '.join(cls.own_options) or 'none'}.",
                )
            if value not in cls.own_options[name]:
                raise UsageError(
                    "task-option",
                    f"[task.options]: `{name}` is {value!r}.",
                    f"one of: {', '.join(cls.own_options[name])}.",
                )
        return {**{name: values[0] for name, values in cls.own_options.items()}, **given}

    @classmethod
    def texts(cls, row: Row, columns: Mapping[str, str]) -> tuple[str, str]:
        """Return what a row asks and what it answers, without what its template adds to all rows.

        Repeats, leaks and contradictions are told by them.
        """
        asked, *_, answer = (columns[field] for field in cls.fields)
        return "\n".join(str(row[c]) for c in columns_of(asked)), render_template(answer, row)

    def question(self, row: Row) -> str:
        """Return what a row asks, as a person reads it beside an answer."""
        return self.texts(row, self.options["columns"])[0]

    @classmethod
    def check(cls, splits: Mapping[str, Sequence[Row]], options: dict[str, Any]) -> TaskCheck:
        """Complete the options from readable rows; say what this task cannot learn from them."""
        return TaskCheck(options)

    def end_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the tokens that end an answer."""
        return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]

    def supervised_mask(self, example: Example) -> tuple[list[bool], str | None]:
        """Return which tokens are learnt and, where the row has a label as a whole, that label."""
        return [label >= 0 for label in example.labels], None

    def without_length_limit(self) -> Self:
        """Return this task without a limit on the length of its examples."""
        return type(self)({**self.options, "max_length": NO_LIMIT})

    @abstractmethod
    def load_model(self, path: str, revision: str | None, **loading: Any) -> PreTrainedModel:
        """Load the base with this task's output layer, in the dtype of its files.

        ``loading`` goes to ``from_pretrained``, over ``loading.arguments``.
        """

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

        None pads to the longest example and to no more targets than there are.
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
        """Answer each row of one evaluation batch."""

    def token_issues(
        self,
        tokenizer: PreTrainedTokenizerBase,
        split: str,
        rows: Sequence[Row],
        positions: int | None,
    ) -> list[DataIssue]:
        """Return what is wrong with tokens that ``encode`` does not give.

        ``positions`` is the longest row that the base can read, None without a limit.
        """
        return []

    def batch_rows(self, rows: Sequence[Row]) -> int:
        """Return how many rows of a batch ``predict`` makes of these rows."""
        return len(rows)

    def prompts(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> GenerationRequest:
        """Return the prompts that rows put to the model, and when an answer to them ends."""
        raise NotImplementedError

    def decode(
        self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]]
    ) -> list[str]:
        """Return generated answers as text."""
        raise NotImplementedError

    @abstractmethod
    def references(self, rows: Sequence[Row]) -> list[str]:
        """Return the true answers."""


class CausalTask(Task):
    """What tasks on a causal LM share: the model, the batch, and a loss on labelled tokens."""

    task_type = "CAUSAL_LM"
    scores_base = True

    def load_model(self, path: str, revision: str | None, **loading: Any) -> PreTrainedModel:
        """Load the causal LM."""
        from transformers import AutoModelForCausalLM

        trusted = loading.get("trust_remote_code", False)
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            use_safetensors=True,
            output_loading_info=True,
            **{"dtype": "auto", **from_pretrained_kwargs(path, revision, trusted), **loading},
        )
        return check_complete(model, info, fresh_head=False)

    def batch(
        self,
        examples: Sequence[Example],
        pad_id: int,
        device: str,
        length: int | None = None,
        units: int | None = None,
    ) -> Batch:
        """Pad on the right and find the supervised positions (on the host: no sync later)."""
        from bakeoff.engine.loss import SupervisedPositions, supervised_positions

        tokens = [e.tokens for e in examples]
        inputs = pad_inputs(tokens, pad_id, device, length)
        at = supervised_positions(pad_rows([e.labels for e in examples], IGNORE, "cpu"), units)
        targets = SupervisedPositions(*(t.to(device) for t in at))
        return Batch(inputs, targets, tuple(len(t) for t in tokens))

    def item_losses(self, model: nn.Module, batch: Batch) -> ItemLoss:
        """Return the summed cross-entropy and the supervised tokens of each row."""
        import torch

        from bakeoff.engine.loss import token_losses

        at = batch.targets
        losses = token_losses(model, batch.inputs, at)
        zeros = torch.zeros(batch.rows, device=losses.device)
        sums = zeros.index_add(0, at.rows, losses)
        return ItemLoss(sums, zeros.index_add(0, at.rows, (at.targets >= 0).float()))


def check_complete(
    model: PreTrainedModel, info: Mapping[str, Any], fresh_head: bool
) -> PreTrainedModel:
    """Return a loaded model, if its files hold all that it is made of.

    transformers draws at random what they lack, and logs a line. With ``fresh_head`` that is meant
    for what stands behind the base, and for a pooler, which many checkpoints do not have.

    Raises:
        PreflightError: ``base-incomplete``.
    """
    inside = f"{model.base_model_prefix}." if fresh_head else ""
    lacking = sorted(n for n in info["missing_keys"] if n.startswith(inside))
    missing = [n for n in lacking if not (fresh_head and POOLER in n.split("."))]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise PreflightError(
            "base-incomplete",
            f"The base's files do not hold {missing[0]}{more}: it would be random numbers.",
            "download the base again, to the end; or another base: its config.json is another "
            "model's, or it was not trained to say next tokens.",
        )
    return model


def load_tokenizer(
    path: str, revision: str | None, trusted: bool = False
) -> PreTrainedTokenizerBase:
    """Load the base's tokenizer; one without a padding token pads with its end token.

    Raises:
        PreflightError: what ``loading.check`` refuses.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        path, **from_pretrained_kwargs(path, revision, trusted)
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
    """Return ``[B, T]`` integers, padded with ``value`` to ``length`` or the longest row."""
    import torch

    longest = length or max(len(r) for r in rows)
    out = torch.full((len(rows), longest), value, dtype=torch.long)
    for i, row in enumerate(rows):
        at = longest - len(row) if left else 0
        out[i, at : at + len(row)] = torch.tensor(row, dtype=torch.long)
    return out.to(device)

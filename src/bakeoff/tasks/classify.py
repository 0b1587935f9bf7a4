"""Text classification: a new output layer on the base, cross-entropy over the classes.

For encoders and decoders. The output layer of a decoder reads the state of an item's last token
(``engine.packing.pooling``). Batches are padded on the right, so no token sees padding before it.

Tensor axes: B = items.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bakeoff.data import written_tokens
from bakeoff.data.issues import MAX_SHOWN, DataIssue
from bakeoff.data.rows import Row
from bakeoff.data.special_tokens import without_added
from bakeoff.data.templates import render_template
from bakeoff.tasks._base import (
    HEAD,
    Answer,
    Batch,
    Example,
    ItemLoss,
    Task,
    TaskCheck,
    is_in_head,
    pad_id_of,
    pad_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,15}(\.0+)?")


class ClassTargets(NamedTuple):
    """Targets of a batch: the class ``[B]`` of each item, and its last token's position ``[B]``."""

    numbers: Tensor
    last: Tensor


class Classify(Task):
    """Sequence classification."""

    fields = {"text": "text", "label": "label"}
    default_metric = "accuracy"
    secondary = ("macro_f1",)
    task_type = "SEQ_CLS"
    auto_model = "AutoModelForSequenceClassification"
    heads = ("classifier", "score")
    scores_validation = True
    scores_base = False

    @classmethod
    def check(cls, splits: Mapping[str, Sequence[Row]], options: dict[str, Any]) -> TaskCheck:
        """Number the labels of train; fewer than two, or unknown ones elsewhere, are fatal."""
        label = options["columns"]["label"]
        known = label_order({render_template(label, r) for r in splits["train"]})
        issues = []
        if len(known) < 2:
            issues.append(
                DataIssue(
                    "one-label",
                    f"Every row of train has the label '{known[0]}'",
                    "classification needs at least two labels in the `label` column.",
                    fatal=True,
                )
            )
        for split in ("validation", "test"):
            unknown = [
                (i, v)
                for i, r in enumerate(splits[split])
                if (v := render_template(label, r)) not in known
            ]
            if unknown:
                labels = ", ".join(
                    f"'{v}'" for v in list(dict.fromkeys(v for _, v in unknown))[:MAX_SHOWN]
                )
                issues.append(
                    DataIssue.at(
                        "label-not-in-train",
                        f"A label that no row of train has ({labels})",
                        "add a row of each of these labels to train, or remove their rows; one "
                        "file as `data.train` alone is cut so that train has every label.",
                        split,
                        [i for i, _ in unknown],
                        len(splits[split]),
                        fatal=True,
                    )  # fmt: skip
                )
        return TaskCheck({**options, "labels": known}, tuple(issues))

    def model_arguments(self) -> dict[str, Any]:
        """Return the number of labels and their names."""
        labels: list[str] = self.options["labels"]
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: i for i, name in enumerate(labels)},
        }

    def load_model(self, path: str, revision: str | None, **loading: Any) -> PreTrainedModel:
        """Load the base with a new classification layer, without a key-value cache."""
        replaced = self.options.get(HEAD, {}).get("replaced", False)
        if replaced:  # the base's own layer may have another number of labels
            loading = {"ignore_mismatched_sizes": True, **loading}
        model = super().load_model(path, revision, **loading)
        if replaced:
            draw_head(model, self.heads)
        # a decoder would fill a cache of keys and values in every pass, and never read it
        model.config.get_text_config().use_cache = False
        return model

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Example]:
        """Tokenise the texts and number the labels."""
        columns = self.options["columns"]
        number = {name: i for i, name in enumerate(self.options["labels"])}
        texts = [
            without_added(tokenizer, render_template(columns["text"], r), end=True) for r in rows
        ]
        tokens = tokenizer(texts, truncation=True, max_length=self.options["max_length"])
        return [
            Example(tuple(ids), (number[render_template(columns["label"], r)],))
            for ids, r in zip(tokens["input_ids"], rows, strict=True)
        ]

    def resolve(
        self, tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Sequence[Row]]
    ) -> TaskCheck:
        """Report special tokens in texts; those that the tokenizer adds itself are kept once."""
        changes, issues = written_tokens.prompt_changes(
            tokenizer, splits, self.options["columns"]["text"], None
        )
        return TaskCheck({**self.options, **changes}, tuple(issues))

    def supervised_mask(self, example: Example) -> tuple[list[bool], str | None]:
        """Return no supervised token, and the row's label."""
        (label,) = example.labels
        return [False] * len(example.tokens), str(self.options["labels"][label])

    def batch(
        self,
        examples: Sequence[Example],
        pad_id: int,
        device: str,
        length: int | None = None,
        units: int | None = None,
    ) -> Batch:
        """Pad on the right; find each item's last token on the host, to avoid a sync later."""
        import torch

        from bakeoff.engine.packing.pooling import last_token_positions

        tokens = [e.tokens for e in examples]
        inputs = pad_inputs(tokens, pad_id, device, length)
        numbers = torch.tensor([e.labels[0] for e in examples], device=device)
        last = torch.tensor(last_token_positions(tokens, pad_id), device=device)
        return Batch(inputs, ClassTargets(numbers, last), tuple(len(t) for t in tokens))

    def item_losses(self, model: nn.Module, batch: Batch) -> ItemLoss:
        """Return the cross-entropy of each item, in fp32."""
        import torch
        from torch.nn import functional

        logits = self._logits(model, batch).float()
        losses = functional.cross_entropy(logits, batch.targets.numbers, reduction="none")
        return ItemLoss(losses, torch.ones_like(losses))

    @staticmethod
    def _logits(model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits ``[B, classes]``."""
        from bakeoff.engine.packing.pooling import pool_last_token

        with pool_last_token(model, batch.targets.last, batch.inputs["input_ids"].shape[1]):
            logits: Tensor = model(**batch.inputs).logits
        return logits

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        device: str,
    ) -> list[str]:
        """Return the most likely label of each row."""
        examples = self.encode(tokenizer, rows)
        batch = self.batch(examples, pad_id_of(tokenizer), device)
        classes: list[int] = self._logits(model, batch).argmax(-1).tolist()
        return [self.options["labels"][i] for i in classes]

    def references(self, rows: Sequence[Row]) -> list[str]:
        """Return the true labels."""
        return [render_template(self.options["columns"]["label"], r) for r in rows]

    def perfect_answers(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
    ) -> list[Answer]:
        """Return the label of each row's number."""
        numbers = (example.labels[0] for example in self.encode(tokenizer, rows))
        return [Answer(self.options["labels"][number]) for number in numbers]


def label_order(labels: Collection[str]) -> list[str]:
    """Return labels in the order of the classes: whole numbers by value, others as text."""
    if all(_WHOLE_NUMBER.fullmatch(label) for label in labels):
        return sorted(labels, key=lambda label: (float(label), label))
    return sorted(labels)


def draw_head(model: PreTrainedModel, heads: Collection[str]) -> None:
    """Initialise the output layer anew, from the seed that torch was given last.

    The result is what a base without an output layer gets when it is loaded with that seed.
    """
    import torch

    for name, module in model.named_modules():
        inside = is_in_head(name, heads)
        # transformers' own marks: an initialised tensor is skipped, and so is a marked module. The
        # modules around the head are not marked, because some of them initialise its tensors.
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            tensor._is_hf_initialized = not inside
        around = any(is_in_head(n, heads) for n, _ in module.named_modules())
        module._is_hf_initialized = not (inside or around)
    torch.manual_seed(torch.initial_seed())
    model.initialize_weights()


TASK = Classify

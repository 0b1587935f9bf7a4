"""Text -> label: a fresh output layer on the base, cross-entropy over the classes.

Encoders and decoders. A decoder's output layer reads the state of an item's last token
(``engine.pooling``); batches are padded on the right, so padding is seen by no token before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bakeoff.data.issues import MAX_SHOWN, DataIssue
from bakeoff.data.rows import Row, render_template
from bakeoff.engine.safe_loading import from_pretrained_kwargs
from bakeoff.tasks._base import (
    Batch,
    Example,
    ItemLoss,
    Task,
    TaskCheck,
    check_complete,
    pad_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ClassTargets(NamedTuple):
    """What a batch is to learn: each item's class ``[B]``, and where its last token is ``[B]``."""

    numbers: Tensor
    last: Tensor


class Classify(Task):
    """Sequence classification."""

    fields = {"text": "text", "label": "label"}
    metrics = ("accuracy", "loss")
    secondary = ("macro_f1",)
    task_type = "SEQ_CLS"
    heads = ("classifier", "score")
    scores_validation = True
    scores_base = False

    @classmethod
    def check(cls, splits: Mapping[str, Sequence[Row]], options: dict[str, Any]) -> TaskCheck:
        """Number the labels of train; fewer than two, or others elsewhere, are fatal."""
        label = options["columns"]["label"]
        known = sorted({render_template(label, r) for r in splits["train"]})
        faults = []
        if len(known) < 2:
            faults.append(
                DataIssue(
                    "one-label",
                    f"Every row of train has the label '{known[0]}'",
                    "classification needs at least two labels in the `label` column.",
                    fatal=True,
                )
            )
        for split in ("validation", "test"):
            found = [
                (i, v)
                for i, r in enumerate(splits[split])
                if (v := render_template(label, r)) not in known
            ]
            if found:
                labels = ", ".join(
                    f"'{v}'" for v in list(dict.fromkeys(v for _, v in found))[:MAX_SHOWN]
                )
                faults.append(
                    DataIssue.at(
                        "label-not-in-train",
                        f"A label that no row of train has ({labels})",
                        "add examples of it to train, or remove those rows.",
                        split,
                        [i for i, _ in found],
                        len(splits[split]),
                        fatal=True,
                    )  # fmt: skip
                )
        return TaskCheck({**options, "labels": known}, tuple(faults))

    def load_model(self, path: str, revision: str | None, **loading: Any) -> PreTrainedModel:
        """Load the base with a fresh classifier; seed torch first."""
        from transformers import AutoModelForSequenceClassification

        labels: list[str] = self.options["labels"]
        trusted = loading.get("trust_remote_code", False)
        found, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={name: i for i, name in enumerate(labels)},
            use_safetensors=True,
            output_loading_info=True,
            **{"dtype": "auto", **from_pretrained_kwargs(path, revision, trusted), **loading},
        )
        model = check_complete(found, info, fresh_head=True)
        # a decoder would fill a cache of keys and values in every pass, for no next token
        model.config.get_text_config().use_cache = False
        return model

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Example]:
        """Tokenise the texts and number the labels."""
        columns = self.options["columns"]
        number = {name: i for i, name in enumerate(self.options["labels"])}
        texts = [render_template(columns["text"], r) for r in rows]
        tokens = tokenizer(texts, truncation=True, max_length=self.options["max_length"])
        return [
            Example(tuple(ids), (number[render_template(columns["label"], r)],))
            for ids, r in zip(tokens["input_ids"], rows, strict=True)
        ]

    def supervised_mask(self, example: Example) -> tuple[list[bool], str | None]:
        """Return no token, and the row's label."""
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
        """Pad on the right and find each item's last token (on the host: no sync later)."""
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
        batch = self.batch(examples, int(tokenizer.pad_token_id or 0), device)
        best: list[int] = self._logits(model, batch).argmax(-1).tolist()
        return [self.options["labels"][i] for i in best]

    def references(self, rows: Sequence[Row]) -> list[str]:
        """Return the true labels."""
        return [render_template(self.options["columns"]["label"], r) for r in rows]


TASK = Classify

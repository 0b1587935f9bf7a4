"""Prompt -> completion: supervised fine-tuning of a causal LM, loss on the completion alone.

Answers are generated greedily (``engine.generate``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bakeoff.data import Row, fill
from bakeoff.errors import PreflightError
from bakeoff.tasks import Batch, Checked, Example, ItemLoss, Task, padded, source_arguments

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bakeoff.engine.generate import Asked

IGNORE = -100
EXTRA_NEW_TOKENS = 8


class SupervisedFineTuning(Task):
    """Causal language modelling on completions."""

    fields = {"prompt": "prompt", "completion": "completion"}
    metrics = (
        "exact_match", "contains", "regex", "numeric", "token_f1", "chrf", "json_match",
        "json_fields", "json_valid", "loss",
    )  # fmt: skip
    task_type = "CAUSAL_LM"
    needs_end_token = True
    scores_validation = False
    scores_base = True
    generates = True

    @classmethod
    def check(cls, splits: Mapping[str, Sequence[Row]], options: dict[str, Any]) -> Checked:
        """Note train's longest completion.

        It bounds how many tokens are generated, so nothing of the test set does.
        """
        longest = max((fill(options["columns"]["completion"], r) for r in splits["train"]), key=len)
        return Checked({**options, "longest_completion": longest})

    def load_model(self, path: str, revision: str | None, **loading: Any) -> PreTrainedModel:
        """Load the causal LM."""
        from transformers import AutoModelForCausalLM

        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path,
            use_safetensors=True,
            **source_arguments(path, revision),
            **{"dtype": "auto", **loading},
        )
        return model

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Example]:
        """Tokenise prompt and completion apart, end token included; label the completion.

        A row that is too long loses the start of its prompt, never its completion.

        Raises:
            PreflightError: ``completion-too-long``, naming the row.
        """
        examples = []
        for number, row in enumerate(rows, 1):
            prompt = self._prompt(tokenizer, row)
            answer = self._tokens(tokenizer, fill(self.options["columns"]["completion"], row))
            answer = [*answer, int(tokenizer.eos_token_id or 0)]
            room = self.options["max_length"] - len(answer)
            if room < 1:
                raise PreflightError(
                    "completion-too-long",
                    f"The completion of row {number} has {len(answer)} tokens; task.max_length is "
                    f"{self.options['max_length']}.",
                    f"task.max_length = {len(answer) + 32}, or drop the row.",
                )
            prompt = prompt[-room:]
            labels = [IGNORE] * len(prompt) + answer
            examples.append(Example(tuple(prompt + answer), tuple(labels)))
        return examples

    def _prompt(self, tokenizer: PreTrainedTokenizerBase, row: Row) -> list[int]:
        text = fill(self.options["columns"]["prompt"], row)
        ids: list[int] = tokenizer(text)["input_ids"]
        return ids

    @staticmethod
    def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def batch(
        self,
        examples: Sequence[Example],
        pad_id: int,
        device: str,
        length: int | None = None,
        units: int | None = None,
    ) -> Batch:
        """Pad on the right and find the supervised positions (on the host: no sync later)."""
        from bakeoff.engine.loss import Supervised, supervised_positions

        tokens = [e.tokens for e in examples]
        inputs = {
            "input_ids": padded(tokens, pad_id, device, length=length),
            "attention_mask": padded([[1] * len(t) for t in tokens], 0, device, length=length),
        }
        at = supervised_positions(padded([e.labels for e in examples], IGNORE, "cpu"), units)
        targets = Supervised(*(t.to(device) for t in at))
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

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        device: str,
    ) -> list[str]:
        """Generate greedily by plain ``generate``, all prompts of the batch padded on the left."""
        from bakeoff.engine.generate import plain

        return self.said(tokenizer, plain(model, self.asked(tokenizer, rows)))

    def asked(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> Asked:
        """Return the prompts, cut at their start to ``max_length``; an end token ends an answer."""
        from bakeoff.engine.generate import Asked

        limit = self.options["max_length"]
        return Asked(
            prompts=[self._prompt(tokenizer, r)[-limit:] for r in rows],
            ends=(int(tokenizer.eos_token_id or 0),),
            most=self._new_tokens(tokenizer),
            pad=int(tokenizer.pad_token_id or 0),
        )

    def said(
        self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]]
    ) -> list[str]:
        """Return the answers without their special tokens."""
        answers: list[str] = tokenizer.batch_decode(list(tokens), skip_special_tokens=True)
        return answers

    def _new_tokens(self, tokenizer: PreTrainedTokenizerBase) -> int:
        given = self.options.get("max_new_tokens")
        if given is not None:
            return int(given)
        longest = len(self._tokens(tokenizer, self.options["longest_completion"]))
        return longest + EXTRA_NEW_TOKENS

    def references(self, rows: Sequence[Row]) -> list[str]:
        """Return the true completions."""
        return [fill(self.options["columns"]["completion"], r) for r in rows]


TASK = SupervisedFineTuning

"""Prompt -> completion: supervised fine-tuning of a causal LM, loss on the completion alone.

Answers are generated greedily (``engine.generate``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bakeoff.data import Row, fill
from bakeoff.errors import PreflightError
from bakeoff.tasks import IGNORE, CausalTask, Checked, Example

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from bakeoff.engine.generate import Asked

EXTRA_NEW_TOKENS = 8


class SupervisedFineTuning(CausalTask):
    """Causal language modelling on completions."""

    fields = {"prompt": "prompt", "completion": "completion"}
    metrics = (
        "exact_match", "contains", "regex", "numeric", "token_f1", "chrf", "json_match",
        "json_fields", "json_valid", "loss",
    )  # fmt: skip
    needs_end_token = True
    scores_validation = False
    generates = True

    @classmethod
    def check(cls, splits: Mapping[str, Sequence[Row]], options: dict[str, Any]) -> Checked:
        """Note train's longest completion.

        It bounds how many tokens are generated, so nothing of the test set does.
        """
        longest = max((fill(options["columns"]["completion"], r) for r in splits["train"]), key=len)
        return Checked({**options, "longest_completion": longest})

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

"""Tiny random base models and their data, without files or the hub.

Two layers of width 64, chosen for what they contain: transposed ``Conv1D`` (GPT-2), biases and a
pooler (BERT), two stacks and cross-attention (T5), grouped queries and RMS norms (Llama). Llama is
128 wide, so that its narrowest layer is 64 too: some methods need thousands of weights per layer.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from bakeoff.methods.hook import AttachContext
from bakeoff.tasks._base import Batch, Example

WORDS, ROWS, LENGTH, CLASSES = 96, 8, 12, 3
PROMPT, UNSUPERVISED = 4, -100
HEADS = ("classifier", "score")


class TinyBase(NamedTuple):
    """A kind of base: its factory, PEFT's name of its task, and its new output layers."""

    make: Callable[[], Any]
    task_type: str
    heads: tuple[str, ...] = ()


def _llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=2,
        )
    )


def _gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS,
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=2,
        )
    )


def _bert() -> Any:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=CLASSES,
            pad_token_id=0,
        )
    )


def _t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=WORDS,
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=0,
            decoder_start_token_id=0,
        )
    )


KINDS = {
    "llama": TinyBase(_llama, "CAUSAL_LM"),
    "gpt2": TinyBase(_gpt2, "CAUSAL_LM"),
    "bert": TinyBase(_bert, "SEQ_CLS", HEADS),
    "t5": TinyBase(_t5, "SEQ_2_SEQ_LM"),
}


@functools.cache
def _original(kind: str) -> Any:
    torch.manual_seed(0)
    return KINDS[kind].make().requires_grad_(False).eval()


def base(kind: str) -> Any:
    """Return a frozen base of a kind, with the same weights each time."""
    return copy.deepcopy(_original(kind))


def batches(kind: str, rows: int) -> Iterator[Batch]:
    """Yield the kind's 32 examples, ``rows`` per batch; targets are ``[B, T]`` (BERT: ``[B]``)."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, WORDS, (4 * ROWS, LENGTH), generator=generator)
    for own in tokens.split(rows):  # type: ignore[no-untyped-call]
        inputs = {"input_ids": own, "attention_mask": torch.ones_like(own)}
        if kind == "t5":
            inputs["decoder_input_ids"] = own.roll(1, dims=1)
        # something that can be learned: each token determines the next one
        targets = own[:, 0] % CLASSES if kind == "bert" else (own + 1) % WORDS
        if kind != "bert":
            targets[:, :PROMPT] = UNSUPERVISED
        yield Batch(inputs, targets, (LENGTH,) * len(own))


def logits(model: Any, batch: Batch) -> Tensor:
    """Return logits ``[B, T, V]`` (BERT: ``[B, C]``), without those of virtual tokens."""
    out: Tensor = model(**batch.inputs).logits
    return out if out.dim() == 2 else out[:, -LENGTH:]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of a batch."""
    out = logits(model, batch).float()
    return functional.cross_entropy(out.reshape(-1, out.shape[-1]), batch.targets.reshape(-1))


def attach_context(kind: str, steps: int) -> AttachContext:
    """Return the attach context of a tiny study."""

    def examples() -> list[Example]:
        return [
            Example(tuple(row.tolist()), tuple(target.reshape(-1).tolist()))
            for batch in batches(kind, ROWS)
            for row, target in zip(batch.inputs["input_ids"], batch.targets, strict=True)
        ]

    own = KINDS[kind]
    return AttachContext(
        own.task_type, own.heads, steps, examples, functools.partial(batches, kind), loss
    )

"""Tiny tokenizers of the kinds that bases have, built without a network."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

BEGIN, END, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
ADDED = ("<POS>", "<NEG>")
"""Special tokens that a user added."""
SPECIAL = [PAD, BEGIN, END, UNKNOWN, *ADDED]
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "Where is it? Answer: Paris, Berlin or Rome. Sentiment: good",
    '{"name": "Ann", "age": 3} 12 345 6.5 yes no',
    "我 爱 北 京 天 安 门 é ü 🙂",
] * 4


def byte_level(lower: bool = False, prefix_space: bool = False) -> Tokenizer:
    """Return a byte-level BPE, as GPT-2's and Llama 3's are."""
    made = Tokenizer(models.BPE())
    if lower:
        made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return made


def unigram(prepend: str = "always") -> Tokenizer:
    """Return a Unigram model on SentencePiece's spaces, as T5's and XLM-R's are."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    made.decoder = decoders.Metaspace(prepend_scheme=prepend)
    made.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=200, special_tokens=SPECIAL, unk_token=UNKNOWN, show_progress=False
        ),
    )
    return made


def byte_fallback() -> Tokenizer:
    """Return a BPE on SentencePiece's spaces that falls back to bytes, as Llama 2's is."""
    made = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    pieces = [f"<0x{i:02X}>" for i in range(256)]
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=420, special_tokens=[*SPECIAL, *pieces], show_progress=False
        ),
    )
    return made


def word_piece() -> Tokenizer:
    """Return an uncased WordPiece, which puts spaces between Chinese characters."""
    made = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        TEXTS,
        trainers.WordPieceTrainer(vocab_size=260, special_tokens=SPECIAL, show_progress=False),
    )
    return made


def wrap(made: Tokenizer, begin: bool = False, end: bool = False) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a base, which puts these special tokens around every text."""
    before, after = [BEGIN] * begin, [END] * end
    if before or after:
        single = " ".join([*before, "$A", *after])
        made.post_processor = processors.TemplateProcessing(
            single=single,
            pair=f"{single} $B",
            special_tokens=[(x, made.token_to_id(x)) for x in (*before, *after)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=list(ADDED),
    )


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": lambda: wrap(byte_level()),
    "byte-level-begin": lambda: wrap(byte_level(), begin=True),
    "byte-level-begin-end": lambda: wrap(byte_level(), begin=True, end=True),
    "byte-level-prefix-space": lambda: wrap(byte_level(prefix_space=True)),
    "lower-casing": lambda: wrap(byte_level(lower=True)),
    "unigram": lambda: wrap(unigram(), end=True),
    "unigram-first": lambda: wrap(unigram("first"), begin=True),
    "unigram-never": lambda: wrap(unigram("never")),
    "byte-fallback": lambda: wrap(byte_fallback(), begin=True),
    "word-piece": lambda: wrap(word_piece(), begin=True, end=True),
}
"""Every kind of tokenizer, by name."""


@cache
def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of this kind."""
    return KINDS[kind]()

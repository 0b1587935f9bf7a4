"""Conversations: which tokens are learnt, held against transformers' own mask and prefixes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bakeoff.core.errors import PreflightError
from bakeoff.data.chat import Chat, UnusableConversation, template
from bakeoff.data.chat.messages import (
    drop_oldest_exchange,
    find_conversation_error,
    read_messages,
    trim_conversation,
)
from bakeoff.tasks.sft import IGNORE
from bakeoff.training.preflight.row_preview import pieces

TEMPLATES = Path(__file__).parents[1] / "data" / "chat"
CONTROL = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "chatml-marked": ("<|im_start|>", "<|im_end|>"),
    "thinking": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "mistral": (),
    "endless": (),
}
ENDS = {
    "chatml": "<|im_end|>", "chatml-marked": "<|im_end|>", "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>", "mistral": "</s>", "thinking": "<|im_end|>",
}  # fmt: skip
TEXT = "What is two plus two? The answer is four. And three? user assistant model system: seven\n"

Messages = list[dict[str, Any]]


def said(*texts: str, system: str | None = None) -> Messages:
    """User and assistant in turn."""
    turns = [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(texts)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


ONE = said("What is two plus two?", "four 🙂")
TWO = said("What is two?", "It is two.", "And three?", "It is\nthree, of course.")


def tokenizer(family: str, **more: Any) -> PreTrainedTokenizerBase:
    """A small byte-level tokenizer with the control tokens of a family and its template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT] * 20, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet)
    )
    made.add_special_tokens(
        [AddedToken(c, special=True) for c in ("<s>", "</s>", *CONTROL[family])]
    )
    template = (TEMPLATES / f"{family}.jinja").read_text()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>",
        **{"pad_token": "</s>", "chat_template": template, **more},
    )  # fmt: skip


def learnt(tok: PreTrainedTokenizerBase, messages: Messages, limit: int = 500) -> str:
    """The whole text, what is learnt between brackets."""
    found = Chat(tok).encode(messages, limit)
    flags = [label != IGNORE for label in found.labels]
    assert all(i == n for i, n in zip(found.ids, found.labels, strict=True) if n != IGNORE)
    marked, inside = "", False
    for text, _, flag in pieces(tok, found.ids, flags):
        marked += ("" if flag == inside else "[" if flag else "]") + text
        inside = flag
    return marked + ("]" if inside else "")


def of_transformers(
    tok: PreTrainedTokenizerBase, messages: Messages
) -> tuple[list[int], list[int]]:
    """Tokens and mask as ``apply_chat_template`` gives them."""
    found = tok.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(found["input_ids"]), list(found["assistant_masks"])


# --- what is learnt ------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("turns", [ONE, TWO], ids=["one", "two"])
def test_marks_give_the_mask_of_transformers(turns: Messages, system: str | None) -> None:
    """Line ends, emoji and several turns: token by token the same."""
    tok = tokenizer("chatml-marked")
    messages = trim_conversation(turns, system)
    ids, mask = of_transformers(tok, messages)
    assert sum(mask) > 2 * len(turns) / 2
    found = Chat(tok).encode(messages, 500)
    assert found.ids == ids
    assert [int(label != IGNORE) for label in found.labels] == mask


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma", "mistral"])
@pytest.mark.parametrize("turns", [ONE, TWO], ids=["one", "two"])
def test_without_marks_prefixes_give_the_mask(family: str, turns: Messages) -> None:
    """By prefix differences of token lists, which the code does on text: the same, and the end."""
    tok = tokenizer(family)
    ids = tok.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    mask = [0] * len(ids)
    for i, message in enumerate(turns):
        if message["role"] == "assistant":
            opened = tok.apply_chat_template(
                turns[:i], tokenize=True, return_dict=True, add_generation_prompt=True
            )["input_ids"]
            closed = tok.apply_chat_template(turns[: i + 1], tokenize=True, return_dict=True)
            end = tok.convert_tokens_to_ids(ENDS[family])
            stop = len(opened) + closed["input_ids"][len(opened) :].index(end) + 1
            mask[len(opened) : stop] = [1] * (stop - len(opened))
    found = Chat(tok).encode(turns, 500)
    assert found.ids == ids
    assert [int(label != IGNORE) for label in found.labels] == mask
    assert sum(label == end for label in found.labels) == len(turns) / 2, "each turn's end, once"


def test_marked_and_unmarked_templates_agree() -> None:
    """Templates of a family with and without generation marks agree."""
    for turns in (ONE, TWO, trim_conversation(TWO, "Be brief.")):
        one, other = (Chat(tokenizer(f)).encode(turns, 500) for f in ("chatml", "chatml-marked"))
        assert one == other


def test_supervised_tokens_by_hand() -> None:
    """The supervised tokens match those marked by hand."""
    assert learnt(tokenizer("chatml"), trim_conversation(TWO, "Be brief.")) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is two?<|im_end|>\n"
        "<|im_start|>assistant\n[It is two.<|im_end|>]\n"
        "<|im_start|>user\nAnd three?<|im_end|>\n"
        "<|im_start|>assistant\n[It is\nthree, of course.<|im_end|>]\n"
    )
    assert learnt(tokenizer("mistral"), TWO) == (
        "<s>[INST] What is two? [/INST][ It is two.</s>]"
        "[INST] And three? [/INST][ It is\nthree, of course.</s>]"
    )


def test_end_token_supervised_outside_marks() -> None:
    """The end token is supervised even if the marks leave it out."""
    tok = tokenizer("chatml-marked")
    text = str(tok.chat_template)
    tok.chat_template = text.replace(
        "message['content'] + '<|im_end|>' }}{% endgeneration %}",
        "message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
    )
    assert tok.chat_template != text
    assert Chat(tok).encode(TWO, 500) == Chat(tokenizer("chatml")).encode(TWO, 500)


def test_padding_token_ends_turn() -> None:
    """A template may end its turns with the padding token."""
    tok = tokenizer("chatml", pad_token="<|im_end|>")
    assert tok.pad_token_id != tok.eos_token_id
    assert Chat(tok).encode(TWO, 500) == Chat(tokenizer("chatml")).encode(TWO, 500)


def test_row_system_message_takes_precedence() -> None:
    """A row's own system message takes precedence over the study's."""
    own = said("Hi", "Yes", system="mine")
    assert trim_conversation(own, "the study's") == own
    assert trim_conversation(ONE, "the study's")[0] == {"role": "system", "content": "the study's"}
    assert [m["content"] for m in trim_conversation([*TWO, *said("left out")])] == [
        m["content"] for m in TWO
    ]


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma", "mistral"])
def test_prompt_matches_training_tokens(family: str) -> None:
    """Answers are generated after the tokens that were trained on."""
    tok = tokenizer(family)
    whole, prompt = Chat(tok).encode(TWO, 500), Chat(tok).prompt(TWO, 500)
    assert whole.ids[: len(prompt)] == prompt
    assert whole.labels[len(prompt)] != IGNORE, "the answer begins there"
    assert IGNORE not in whole.labels[len(prompt) : -1]
    end = tok.convert_tokens_to_ids(ENDS[family])
    assert Chat(tok).end_tokens() == list(dict.fromkeys([end, tok.eos_token_id]))


# --- too long ------------------------------------------------------------------------------------


def test_long_conversation_drops_oldest_exchanges() -> None:
    """A conversation that is too long loses its oldest exchanges, each as a whole."""
    tok = tokenizer("chatml")
    messages = trim_conversation([*TWO, *ONE], "Be brief.")
    full = len(Chat(tok).encode(messages, 500).ids)
    assert learnt(tok, messages, full) == learnt(tok, messages)
    assert learnt(tok, messages, full - 1) == learnt(tok, drop_oldest_exchange(messages) or [])
    shorter = drop_oldest_exchange(drop_oldest_exchange(messages) or []) or []
    assert [m["content"] for m in shorter] == ["Be brief.", "What is two plus two?", "four 🙂"]
    assert drop_oldest_exchange(shorter) is None
    prompt = Chat(tok).prompt(messages, 500)
    assert Chat(tok).prompt(messages, len(prompt)) == prompt
    cut = Chat(tok).prompt(messages, len(prompt) - 1)
    assert cut == Chat(tok).prompt(drop_oldest_exchange(messages) or [], 500)
    last = Chat(tok).prompt(shorter, 500)
    assert Chat(tok).prompt(messages, len(last) - 3) == last[3:]


def test_answer_never_truncated() -> None:
    """An answer is never truncated."""
    tok = tokenizer("chatml")
    found = Chat(tok).encode(ONE, 500)
    first = next(i for i, label in enumerate(found.labels) if label != IGNORE)
    answer = len(found.ids) - first
    assert Chat(tok).encode(ONE, answer).labels == found.labels[first:]
    with pytest.raises(UnusableConversation) as error:
        Chat(tok).encode(ONE, answer - 1)
    assert error.value.code == "completion-too-long"


# --- what is refused -----------------------------------------------------------------------------


def refused(tok: PreTrainedTokenizerBase, messages: Messages, **more: Any) -> UnusableConversation:
    with pytest.raises(UnusableConversation) as error:
        Chat(tok, **more).encode(messages, 500)
    assert error.value.try_
    return error.value


def test_template_without_turn_end_refused() -> None:
    """A template that ends no turn is refused."""
    assert refused(tokenizer("endless"), ONE).code == "chat-no-turn-end"


def test_template_without_system_role() -> None:
    """A template without a system role gets its text in front of the first user's."""
    tok = tokenizer("gemma")
    merged = said("Be brief.\n\nWhat is two plus two?", "four 🙂")
    assert learnt(tok, trim_conversation(ONE, "Be brief.")) == learnt(tok, merged)


def test_inconsistent_template() -> None:
    """Of a template that renders earlier turns differently, the last turn is supervised.

    Qwen3's way: thinking is written for the last answer alone, and not into the opening.
    """
    tok = tokenizer("thinking")

    def last(messages: Messages, **more: Any) -> str:
        labels = Chat(tok, **more).encode(messages, 500).labels
        return tok.decode([i for i in labels if i != IGNORE])

    assert last(ONE) == "<think>\n\n</think>\n\nfour 🙂<|im_end|>"
    quiet = {"enable_thinking": False}
    assert last(ONE, variables=quiet) == "four 🙂<|im_end|>"
    assert last(TWO, variables=quiet) == "It is\nthree, of course.<|im_end|>"
    error = refused(tok, TWO, variables=quiet, supervise="all")
    assert error.code == "chat-prefix-broken"
    assert "message 2" in error.what


def test_misplaced_generation_marks_refused() -> None:
    """Marks around turns other than the assistant's are refused."""
    tok = tokenizer("chatml-marked")
    tok.chat_template = str(tok.chat_template).replace(
        "message['role'] == 'assistant'", "message['role'] == 'user'"
    )
    assert refused(tok, trim_conversation(TWO, "Be brief.")).code in (
        "chat-marks", "chat-answer-differs"
    )  # fmt: skip
    tok.chat_template = str(tok.chat_template).replace(
        "{% if message['role'] == 'user' %}", "{% if false %}"
    )
    assert refused(tok, TWO).code == "chat-marks"


def test_control_tokens_in_text_refused() -> None:
    """Control tokens in a text are refused."""
    error = refused(tokenizer("chatml"), said("Hi <|im_end|> there", "Yes"))
    assert error.code == "control-token-in-text"
    assert "message 1" in error.what


def test_tokenizer_without_template() -> None:
    """A tokenizer without a template is refused; the study's own template works."""
    tok = tokenizer("chatml", chat_template=None)
    with pytest.raises(PreflightError) as error:
        Chat(tok)
    assert error.value.code == "no-chat-template"
    own = (TEMPLATES / "chatml.jinja").read_text()
    assert Chat(tok, own).encode(TWO, 500) == Chat(tokenizer("chatml")).encode(TWO, 500)


@pytest.mark.parametrize(
    ("value", "code", "says"),
    [
        ("Hi", "messages-malformed", "not a list"),
        ([], "messages-malformed", "not a list"),
        (["Hi"], "messages-malformed", "Message 1 is not an object"),
        ([{"from": "human", "value": "Hi"}], "no-assistant-turn", "without an assistant turn"),
        ([{"role": "humans", "content": "Hi"}], "unknown-role", "'humans'"),
        ([{"role": "asistant", "content": "Hi"}], "unknown-role", "'asistant'"),
        ([{"content": "Hi"}], "unknown-role", "no role"),
        (said("Hi", " "), "empty-message", "Message 2"),
        ([{"role": "user", "content": [{"type": "text"}]}], "content-part-unread", "'text'"),
        ([{"role": "tool", "content": "4"}], "no-assistant-turn", "without an assistant turn"),
        (said("Hi"), "no-assistant-turn", "without an assistant turn"),
        (said("Hi", "Yes")[::-1], "assistant-first", "starts with the assistant"),
    ],
)  # fmt: skip
def test_invalid_conversation_refused(value: Any, code: str, says: str) -> None:
    """A value that is no conversation is refused with the reason."""
    found = find_conversation_error(value)
    assert found is not None
    assert (found.code, says in found.what) == (code, True)
    assert found.try_


def test_other_names_of_roles_are_recognised() -> None:
    found = find_conversation_error([{"role": "asistant", "content": "Hi"}])
    assert found is not None
    assert "did you mean 'assistant'?" in found.try_
    named = [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Yes"}]
    assert [m["role"] for m in read_messages(named)] == ["user", "assistant"]
    assert find_conversation_error(trim_conversation(TWO, "Be brief.")) is None


def test_endless_template_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that never ends is interrupted.

    Fault 53: once, not for each row of the study.
    """
    monkeypatch.setattr(template, "RENDER_SECONDS", 0.2)
    many = "{% for i in range(99999) %}"
    endless = many * 3 + "{% set x = i %}" + "{% endfor %}" * 3
    chat = Chat(tokenizer("chatml"), endless)
    started = time.monotonic()
    with pytest.raises(PreflightError) as error:
        chat.tokens([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert (error.value.code, error.value.exit_code) == ("chat-template-slow", 3)
    assert "may never end" in error.value.try_
    assert time.monotonic() - started < 5

"""The supervised text of the families' chat templates, written out by hand.

The templates in ``chat/`` are what is essential of the families' own (see the README there).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bakeoff.data.chat import Chat, UnusableConversation
from bakeoff.data.chat.findings import find_template_issues
from bakeoff.data.chat.forms import Conversation, read_conversation
from bakeoff.data.chat.thoughts import without_thoughts
from bakeoff.tasks.sft import IGNORE

TEMPLATES = Path(__file__).parent / "chat"
CHATML = ("<|im_start|>", "<|im_end|>")
LLAMA = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
)
DEEPSEEK = (
    "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
)  # fmt: skip
HARMONY = (
    "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>",
)  # fmt: skip
MISTRAL = (
    "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
)  # fmt: skip
FAMILIES = {  # special tokens, begin token, end token
    "qwen2.5": (CHATML, None, "<|im_end|>"),
    "qwen3": (CHATML, None, "<|im_end|>"),
    "hermes": (CHATML, "<s>", "<|im_end|>"),
    "smollm3": (CHATML, None, "<|im_end|>"),
    "phi4": ((*CHATML, "<|im_sep|>"), None, "<|im_end|>"),
    "llama3.1": (LLAMA, "<|begin_of_text|>", "<|eot_id|>"),
    "llama4": (("<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>"), "<s>", "<|eot|>"),
    "gemma3": (("<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>"),
    "gemma": (("<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>"),
    "mistral-v3": (MISTRAL, "<s>", "</s>"),
    "mistral-v7": (MISTRAL, "<s>", "</s>"),
    "deepseek-r1": (DEEPSEEK, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "gpt-oss": (HARMONY, None, "<|return|>"),
    "chatml": (CHATML, None, "<|im_end|>"),
}


def family_tokenizer(family: str, *extra: str) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with a family's special tokens and template; ``extra`` are special."""
    special, begin, end = FAMILIES[family]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([], trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet))
    names = dict.fromkeys([*special, *filter(None, [begin, end]), "<pad>", *extra])
    made.add_special_tokens([AddedToken(name, special=True) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=begin, eos_token=end, pad_token="<pad>",
        chat_template=(TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8"),
    )  # fmt: skip


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {
    "id": "call_1", "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Köln", "days": 2}'},
}  # fmt: skip
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "rain"}
ONE = [user("Two plus two?"), answer("four")]
TWO = [user("Two?"), answer("It is two."), user("Three?"), answer("three")]
BRIEF = [system("Be brief."), *ONE]
USED = [user("Rain?"), CALLING, RESULT, answer("Yes.")]
ASKED = USED[:2]
THOUGHT = [user("Two?"), answer("two", reasoning_content="one and one")]
WRITTEN = [user("Two?"), answer("<think>\none and one\n</think>\n\ntwo")]
ARGUMENTS = '{"city": "Köln", "days": 2}'
QWEN_CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
LLAMA_CALL = f'{{"name": "weather", "parameters": {ARGUMENTS}}}'
MISTRAL_CALL = f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ARGUMENTS}, "id": "000000001"}}]'
DEEPSEEK_CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    f"```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
HARMONY_CALL = f" to=functions.weather<|channel|>commentary json<|message|>{ARGUMENTS}"
IM, EOT, EOS = "<|im_end|>", "<|eot_id|>", "</s>"
R1 = "<｜end▁of▁sentence｜>"


class Case(NamedTuple):
    """A conversation and its supervised pieces; what is compared is the last without its end."""

    family: str
    messages: list[dict[str, Any]]
    supervised: list[str]
    compared: str
    tools: list[Any] | None = None
    variables: dict[str, Any] | None = None


CASES = [
    Case("qwen2.5", TWO, [f"It is two.{IM}", f"three{IM}"], "three"),
    Case("qwen2.5", BRIEF, [f"four{IM}"], "four"),
    Case("qwen2.5", USED, [f"{QWEN_CALL}{IM}", f"Yes.{IM}"], "Yes.", [WEATHER]),
    Case("qwen2.5", ASKED, [f"{QWEN_CALL}{IM}"], QWEN_CALL, [WEATHER]),
    Case("hermes", USED, [f"{QWEN_CALL}{IM}", f"Yes.{IM}"], "Yes.", [WEATHER]),
    Case("hermes", ASKED, [f"{QWEN_CALL}{IM}"], QWEN_CALL),
    Case("qwen3", ONE, [f"<think>\n\n</think>\n\nfour{IM}"], "four"),
    Case("qwen3", ONE, [f"four{IM}"], "four", None, {"enable_thinking": False}),
    Case("qwen3", TWO, [f"<think>\n\n</think>\n\nthree{IM}"], "three"),
    Case("qwen3", THOUGHT, [f"<think>\none and one\n</think>\n\ntwo{IM}"], "two"),
    Case("qwen3", WRITTEN, [f"<think>\none and one\n</think>\n\ntwo{IM}"], "two"),
    Case("qwen3", ASKED, [f"<think>\n\n</think>\n\n{QWEN_CALL}{IM}"], QWEN_CALL, [WEATHER]),
    Case("qwen3", USED, [f"<think>\n\n</think>\n\nYes.{IM}"], "Yes.", [WEATHER]),
    Case("llama3.1", TWO, [f"It is two.{EOT}", f"three{EOT}"], "three"),
    Case("llama3.1", BRIEF, [f"four{EOT}"], "four"),
    Case("llama3.1", USED, [f"{LLAMA_CALL}{EOT}", f"Yes.{EOT}"], "Yes.", [WEATHER]),
    Case("llama3.1", ASKED, [f"{LLAMA_CALL}{EOT}"], LLAMA_CALL, [WEATHER]),
    Case("llama4", TWO, ["It is two.<|eot|>", "three<|eot|>"], "three"),
    Case("llama4", USED, [f"{LLAMA_CALL}<|eot|>", "Yes.<|eot|>"], "Yes."),
    Case("gemma3", TWO, ["It is two.<end_of_turn>", "three<end_of_turn>"], "three"),
    Case("gemma3", BRIEF, ["four<end_of_turn>"], "four"),
    Case("gemma", BRIEF, ["four<end_of_turn>"], "four"),
    Case("mistral-v3", TWO, [f" It is two.{EOS}", f" three{EOS}"], "three"),
    Case("mistral-v3", BRIEF, [f" four{EOS}"], "four"),
    Case("mistral-v3", USED, [f"{MISTRAL_CALL}{EOS}", f" Yes.{EOS}"], "Yes.", [WEATHER]),
    Case("mistral-v3", ASKED, [f"{MISTRAL_CALL}{EOS}"], MISTRAL_CALL, [WEATHER]),
    Case("mistral-v7", TWO, [f"It is two.{EOS}", f"three{EOS}"], "three"),
    Case("mistral-v7", BRIEF, [f"four{EOS}"], "four"),
    Case("phi4", [system("Be brief."), *TWO], [f"It is two.{IM}", f"three{IM}"], "three"),
    Case("deepseek-r1", TWO, [f"It is two.{R1}", f"three{R1}"], "three"),
    Case("deepseek-r1", WRITTEN, [f"\n\ntwo{R1}"], "two"),
    Case("deepseek-r1", USED, [f"{DEEPSEEK_CALL}{R1}", f"Yes.{R1}"], "Yes."),
    Case("gpt-oss", ONE, ["<|channel|>final<|message|>four<|return|>"], "four"),
    Case("gpt-oss", TWO, ["<|channel|>final<|message|>three<|return|>"], "three"),
    Case(
        "gpt-oss", THOUGHT,
        ["<|channel|>analysis<|message|>one and one<|end|><|start|>assistant"
         "<|channel|>final<|message|>two<|return|>"], "two",
    ),
    Case(
        "gpt-oss", WRITTEN,
        ["<|channel|>analysis<|message|>one and one<|end|><|start|>assistant"
         "<|channel|>final<|message|>two<|return|>"], "two",
    ),
    Case("gpt-oss", ASKED, [f"{HARMONY_CALL}<|call|>"], HARMONY_CALL, [WEATHER]),
    Case(
        "gpt-oss", USED,
        [f"{HARMONY_CALL}<|call|>", "<|channel|>final<|message|>Yes.<|return|>"], "Yes.",
    ),
    Case(
        "smollm3", TWO,
        [f"<|im_start|>assistant\nIt is two.{IM}", f"<|im_start|>assistant\nthree{IM}"], "three",
    ),
    Case(
        "smollm3", WRITTEN,
        [f"<|im_start|>assistant\n<think>\none and one\n</think>\n\ntwo{IM}"], "two",
    ),
    Case(
        "smollm3", THOUGHT,
        [f"<|im_start|>assistant\n<think>\none and one\n</think>\n\ntwo{IM}"], "two",
    ),
    Case(
        "smollm3", ONE, [f"<|im_start|>assistant\n<think>\n\n</think>\nfour{IM}"], "four", None,
        {"enable_thinking": False},
    ),
]  # fmt: skip


def conversation(messages: list[dict[str, Any]], tools: Any = None) -> Conversation:
    row = {"messages": messages, **({} if tools is None else {"tools": tools})}
    columns = {"messages": "messages", **({} if tools is None else {"tools": "tools"})}
    return read_conversation(row, columns)


def supervised_texts(chat: Chat, rows: Conversation) -> list[str]:
    """The text of each stretch of supervised tokens."""
    found = chat.encode(rows, 5000)
    runs: list[list[int]] = [[]]
    for token, label in zip(found.ids, found.labels, strict=True):
        assert label in (IGNORE, token)
        if label == IGNORE:
            runs.append([])
        else:
            runs[-1].append(token)
    return [chat.tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.family}-{c.supervised[-1][:12]}")
def test_supervised_text(case: Case) -> None:
    """The supervised text is what is written here, and answers begin behind the prompt."""
    chat = Chat(family_tokenizer(case.family), variables=case.variables)
    rows = conversation(case.messages, case.tools)
    assert supervised_texts(chat, rows) == case.supervised
    assert without_thoughts(chat.answer(rows)).strip() == case.compared.strip()
    whole, prompt = chat.encode(rows, 5000), chat.prompt(rows, 5000)
    assert whole.ids[: len(prompt)] == prompt
    last = max(i for i, label in enumerate(whole.labels) if label != IGNORE)
    assert IGNORE not in whole.labels[len(prompt) : last + 1]
    assert whole.ids[last] in chat.end_tokens(calls=True), "generation stops there"


@pytest.mark.parametrize(
    "family", ["qwen2.5", "qwen3", "llama3.1", "mistral-v3", "hermes", "gpt-oss", "smollm3"]
)
def test_tools_are_in_the_prompt(family: str) -> None:
    """The template gets the tools of the row, in OpenAI's form and bare."""
    chat = Chat(family_tokenizer(family))
    prompts = {
        chat.tokenizer.decode(chat.prompt(conversation(ONE, tools), 5000))
        for tools in ([WEATHER], [WEATHER["function"]])
    }
    (prompt,) = prompts
    assert "weather" in prompt


def codes(chat: Chat, *rows: Conversation) -> set[str]:
    return {issue.code for issue in find_template_issues(chat, "train", rows)}


@pytest.mark.parametrize(
    ("family", "messages", "tools", "found"),
    [
        ("qwen3", TWO, None, {"earlier-turns-not-supervised", "answer-rewritten"}),
        ("qwen3", THOUGHT, None, set()),
        ("llama3.1", TWO, None, set()),
        ("llama3.1", THOUGHT, None, {"thoughts-unwritten"}),
        ("gemma", BRIEF, None, {"system-merged"}),
        ("gemma3", ONE, [WEATHER], {"tools-unwritten"}),
        ("mistral-v3", USED, [WEATHER], {"call-ids-numbered"}),
        ("chatml", [*ONE, {"role": "tool", "content": "x"}, answer("b")], None, set()),
        ("phi4", [*ONE, {"role": "tool", "content": "x"}, answer("b")], None, {"role-unwritten"}),
        ("deepseek-r1", WRITTEN, None, {"thoughts-unwritten"}),
        ("chatml", [user("a"), answer("b", mood="dry")], None, {"message-keys-unread"}),
        ("chatml", [{**user("a"), "id": 7, "timestamp": "now"}, answer("b")], None, set()),
    ],
)
def test_what_a_template_drops_is_found(
    family: str, messages: list[dict[str, Any]], tools: Any, found: set[str]
) -> None:
    """What the template drops, rewrites or merges is reported."""
    assert codes(Chat(family_tokenizer(family)), conversation(messages, tools)) == found


@pytest.mark.parametrize("family", ["phi4", "gemma3", "mistral-v7", "chatml"])
def test_calls_that_no_template_writes_are_refused(family: str) -> None:
    """An answer that is a tool call is refused where the template drops tool calls."""
    with pytest.raises(UnusableConversation) as error:
        Chat(family_tokenizer(family)).encode(conversation(ASKED), 500)
    assert error.value.code == "tool-messages"


def test_hermes_results_are_wrapped_once() -> None:
    """Hermes' data writes the marks around results that the template writes too."""
    chat = Chat(family_tokenizer("qwen2.5"))
    wrapped = {"role": "tool", "content": "<tool_response>\nrain\n</tool_response>"}
    rows = conversation([user("Rain?"), answer(QWEN_CALL), wrapped, answer("Yes.")])
    text = chat.tokenizer.decode(chat.prompt(rows, 5000))
    assert text.count("<tool_response>") == 1
    assert supervised_texts(chat, rows) == [f"{QWEN_CALL}{IM}", f"Yes.{IM}"]


def test_added_tokens_that_the_template_does_not_write_are_legal() -> None:
    """Labels may be special tokens; the template's own are refused in a text."""
    chat = Chat(family_tokenizer("chatml", "<POS>", "<NEG>"))
    rows = conversation([user("good <NEG>?"), answer("<POS>")])
    assert supervised_texts(chat, rows) == [f"<POS>{IM}"]
    with pytest.raises(UnusableConversation) as error:
        chat.encode(conversation([user("a <|im_start|> b"), answer("<POS>")]), 500)
    assert error.value.code == "control-token-in-text"
    with pytest.raises(UnusableConversation, match="no end token"):
        Chat(chat.tokenizer, "{% for m in messages %}{{ m.content }} {% endfor %}").encode(rows, 9)


def test_date_of_the_day_is_listed() -> None:
    tokenizer = family_tokenizer("chatml")
    dated = "{{ strftime_now('%d %b %Y') if date_string is not defined else date_string }}"
    template = dated + str(tokenizer.chat_template)
    assert codes(Chat(tokenizer, template), conversation(ONE)) == {"date-in-prompt"}
    fixed = Chat(tokenizer, template, {"date_string": "26 Jul 2024"})
    assert codes(fixed, conversation(ONE)) == set()

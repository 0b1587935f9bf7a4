"""One file per fault: its code, the rows it names, and whether it refuses (exit 3) or is listed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from bakeoff import api
from bakeoff.core.errors import PreflightError
from bakeoff.data.checks import duplicates, near_duplicates
from bakeoff.data.checks.context import PromptAnswer
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import SPLITS
from bakeoff.study.config import parse_spec
from bakeoff.tasks._base import Example, load_tokenizer
from bakeoff.tasks.sft import IGNORE, SupervisedFineTuning
from bakeoff.testing.tiny import rows, write_jsonl
from bakeoff.training.preflight import token_checks
from bakeoff.training.token_cache import load_or_encode

HERE = Path(__file__).parents[1]
DOCS = HERE.parent / "docs" / "preflight.md"
SOURCES = HERE.parent / "src" / "bakeoff"
Row = dict[str, Any]
# garage and garden stay together: their rows are near-duplicates
HOME = {
    "train": ("kitchen", "bedroom", "garage", "garden"),
    "validation": ("office", "attic"),
    "test": ("hall", "study"),
}


CHAT = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' ' }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def own(split: str) -> list[Row]:
    """The rows of a split that shares no text with the others: 48, 24 and 24."""
    return [r for r in rows() if r["text"].rsplit(" ", 1)[1] in HOME[split]]


class Study:
    """A study of three files without a fault, which a case then spoils."""

    def __init__(self, folder: Path, values: dict[str, Any], llama: Path) -> None:
        self.folder, self.values, self.llama = folder, values, llama
        self.rows = {split: own(split) for split in SPLITS}
        self.values["data"] = {split: f"{split}.jsonl" for split in SPLITS}
        self.values["task"]["margin"] = 0.2
        self.files: dict[str, bytes] = {}

    def sft(self) -> None:
        """Turn it into prompt -> completion on the tiny Llama."""
        self.values["base"]["model"] = str(self.llama)
        self.values["task"] |= {"kind": "sft", "max_length": 64}
        self.values["data"]["columns"] = {"prompt": "Command : {text} JSON", "completion": "{json}"}
        self.values["method"] = {}

    def chat(self, template: str | None = None) -> None:
        """Turn it into conversations on the tiny Llama, rendered by this template."""
        self.sft()
        self.values["data"]["columns"] = {"messages": "chat"}
        for split in SPLITS:
            for row in self.rows[split]:
                row["chat"] = [  # type: ignore[assignment]
                    {"role": "user", "content": row["text"]},
                    {"role": "assistant", "content": row["json"]},
                ]
        (self.folder / "chat.jinja").write_text(CHAT if template is None else template)
        self.values["task"]["chat_template"] = "chat.jinja"

    def file(self, split: str, name: str, content: bytes | str) -> None:
        """Give a split as a file of this content."""
        self.values["data"][split] = name
        self.files[name] = content.encode() if isinstance(content, str) else content

    def write(self) -> None:
        for split in SPLITS:
            if self.values["data"].get(split) == f"{split}.jsonl" and split in self.rows:
                write_jsonl(self.folder / f"{split}.jsonl", self.rows[split])
        for name, content in self.files.items():
            (self.folder / name).write_bytes(content)

    def model(self, kind: str, **tokenizer: Any) -> Path:
        """Copy the base with these tokens in its tokenizer's settings."""
        source = Path(self.values["base"]["model"])
        folder = self.folder / kind
        folder.mkdir()
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        for name, value in tokenizer.items():
            settings.pop(name) if value is None else settings.update({name: value})
        path.write_text(json.dumps(settings))
        self.values["base"]["model"] = str(folder)
        return folder


class Case(NamedTuple):
    code: str
    says: str
    spoil: Callable[[Study], None]


REFUSED: list[Case] = []
LISTED: list[Case] = []


def refuses(code: str, says: str) -> Callable[[Callable[[Study], None]], None]:
    return lambda spoil: REFUSED.append(Case(code, says, spoil))


def lists(code: str, says: str) -> Callable[[Callable[[Study], None]], None]:
    return lambda spoil: LISTED.append(Case(code, says, spoil))


def csv(rows: list[Row], header: str = "text,label") -> str:
    return "\n".join([header, *(f"{r['text']},{r['label']}" for r in rows)]) + "\n"


# --- files ---------------------------------------------------------------------------------------


@refuses("data-not-found", "There is no file")
def _(study: Study) -> None:
    study.values["data"]["test"] = "elsewhere.jsonl"


@refuses("data-format", "ends in '.xlsx'")
def _(study: Study) -> None:
    study.file("test", "test.xlsx", b"PK")


@refuses("data-not-utf8", "byte 0xe9 in lines 2 and 3")
def _(study: Study) -> None:
    study.file("train", "t.csv", b"text,label\ncaf\xe9,lights\ncr\xe8me,music\ntea,timer\n")


@refuses("data-bom", "in line 49")
def _(study: Study) -> None:
    one = b"".join(json.dumps(r).encode() + b"\n" for r in study.rows["train"])
    study.file("train", "joined.jsonl", b"\xef\xbb\xbf" + one + b"\xef\xbb\xbf" + one)


@refuses("data-bom", "A column's name contains a byte order mark in 2 of 48 rows of train: lines 3")
def _(study: Study) -> None:
    for i in (2, 5):
        study.rows["train"][i]["\ufeffid"] = 1


@refuses("data-broken", "line 2: Expecting")
def _(study: Study) -> None:
    study.file("test", "t.jsonl", '{"text": "a", "label": "lights"}\n{"text": \n')


@refuses("data-nul", "NUL bytes in line 2")
def _(study: Study) -> None:
    study.file("test", "t.csv", b"text,label\na\0b and more of it to the end of the line,lights\n")


@refuses("data-nested", "data -> paragraphs -> qas")
def _(study: Study) -> None:
    squad = {"data": [{"paragraphs": [{"qas": [{"question": "q"}]}]}]}
    study.file("test", "t.json", json.dumps(squad))


@refuses("stray-quote", "a quote opens a cell in line 3")
def _(study: Study) -> None:
    study.file("test", "t.csv", 'text,label\nfine,lights\n"broken,music\nfine,lights\n')


@refuses("template-braces", "a '{' that no '}' closes at character 1")
def _(study: Study) -> None:
    study.values["data"]["columns"] = {"text": '{"input": "{text}"}'}


@refuses("duplicate-column", "'label' more than once")
def _(study: Study) -> None:
    study.file("test", "t.csv", "text,label,label\na,lights,music\n")


@refuses("empty-split", "has no rows")
def _(study: Study) -> None:
    study.file("test", "t.jsonl", "\n\n")


@refuses("empty-split", "The test split is empty")
def _(study: Study) -> None:
    del study.values["data"]["validation"], study.values["data"]["test"]
    study.rows["train"] = study.rows["train"][:2]


# --- columns and cells ---------------------------------------------------------------------------


@refuses(
    "column-missing", "No column 'label' (the task's 'label') in 48 of 48 rows of train: lines 2"
)
def _(study: Study) -> None:
    study.file("train", "t.csv", csv(study.rows["train"], header="text, Label "))


@refuses("column-missing", "in 2 of 24 rows of test: lines 4 and 9 of test.jsonl")
def _(study: Study) -> None:
    for i in (3, 8):
        del study.rows["test"][i]["label"]


@refuses(
    "rename-taken", "data.rename makes one 'text' of several columns in 48 of 48 rows of train"
)
def _(study: Study) -> None:
    study.values["data"]["rename"] = {"json": "text"}


@lists("empty-part", "'extra' is empty, and the rest of its template is used, in 2 of 48 rows")
def _(study: Study) -> None:
    study.sft()
    study.values["data"]["columns"]["prompt"] = "{text} {extra} JSON"
    for row in (r for split in SPLITS for r in study.rows[split]):
        row["extra"] = "as"
    study.rows["train"][3]["extra"] = ""
    study.rows["train"][4]["extra"] = None  # type: ignore[assignment]


@refuses("empty-value", "'text' is empty in 3 of 24 rows of test: lines 2, 5 and 24 of test.jsonl")
def _(study: Study) -> None:
    for i, value in ((1, None), (4, "  "), (23, float("nan"))):
        study.rows["test"][i]["text"] = value


@refuses("not-text", "'text' is a list or an object, not text, in 1 of 24 rows of test: line 7")
def _(study: Study) -> None:
    study.rows["test"][6]["text"] = {"en": "lamp"}


@refuses("lone-surrogate", "in 1 of 48 rows of train: line 11 of train.jsonl")
def _(study: Study) -> None:
    study.rows["train"][10]["text"] += " \ud83d"


@lists("mixed-types", "'label' is a whole number where the other rows have text in 12 of 48 rows")
def _(study: Study) -> None:
    for row in study.rows["train"][:12]:
        row["label"] = 7
    for split in ("validation", "test"):
        study.rows[split][0]["label"] = 7


@lists(
    "control-characters", "(U+0000, U+FFFD) in 2 of 24 rows of test: lines 3 and 4 of test.jsonl"
)
def _(study: Study) -> None:
    study.rows["test"][2]["text"] += "\x00"
    study.rows["test"][3]["text"] += "\ufffd"


@lists("null-as-text", "'text' is the word 'nan'")
def _(study: Study) -> None:
    study.rows["test"][5]["text"] = "nan"


@lists("column-escaped", "`{{label}}` in the task's 'text' is the text `{label}`")
def _(study: Study) -> None:
    study.values["data"]["columns"] = {"text": "{text} {{label}}"}


@lists("cell-with-rows", "as a row of the file in 1 of 48 rows of train: line 2 of t.csv")
def _(study: Study) -> None:
    first, *others = study.rows["train"]
    table = f'"{first["text"]}\na,b\nc,d\nend",{first["label"]}\n'
    study.file("train", "t.csv", csv(others).replace("\n", f"\n{table}", 1))


@lists("very-long-row", "(up to 170,0")
def _(study: Study) -> None:
    study.rows["train"][7]["text"] += " lamp lamp" * 17_000


# --- splits --------------------------------------------------------------------------------------


@refuses("one-group", "Every row has the same 'source', 'a'")
def _(study: Study) -> None:
    study.values["data"] = {"train": "train.jsonl", "group": "source"}
    for row in study.rows["train"]:
        row["source"] = "a"


@lists("group-of-one", "Every row has its own 'id'")
def _(study: Study) -> None:
    study.values["data"] = {"train": "train.jsonl", "group": "id"}
    study.rows["train"] = [{**r, "id": i} for i, r in enumerate(rows())]


@lists("group-in-train-and-test", "A 'source' that train has too in 1 of 24 rows of test: line 2")
def _(study: Study) -> None:
    study.values["data"]["group"] = "source"
    for split in SPLITS:
        study.rows[split] = [{**r, "source": split} for r in study.rows[split]]
    study.rows["test"][1]["source"] = "train"


@lists(
    "uneven-split",
    "The test split got 5 % of the rows, not 25 %: groups are few or of very different sizes",
)
def _(study: Study) -> None:
    study.values["data"] = {"train": "train.jsonl", "group": "source"}
    study.rows["train"] = [{**r, "source": i * (i % 5 == 0)} for i, r in enumerate(rows())]


@lists("train-smaller-than-batch", "Train has 48 rows, fewer than a step takes")
def _(study: Study) -> None:
    study.values["budget"]["batch_size"] = 64


@lists("validation-too-small", "Settings are chosen on 3 validation rows")
def _(study: Study) -> None:
    study.rows["validation"] = study.rows["validation"][::8]


@lists("test-too-small", "with 40 items a true difference of")
def _(study: Study) -> None:
    study.values["task"]["margin"] = 0.02
    study.rows["test"] = [
        r | {"text": r["text"] + s} for r in own("test")[:20] for s in ("", " tea")
    ]


@lists("", "The test set has 12 items; below 30 its verdicts mean little.")
def _(study: Study) -> None:
    study.rows["test"] = study.rows["test"][::2]


# --- repeats and answers -------------------------------------------------------------------------


@lists(
    "duplicate-rows", "in 1 of 49 rows of train: line 49 of train.jsonl like line 4 of train.jsonl"
)
def _(study: Study) -> None:
    study.rows["train"].append(study.rows["train"][3])


@lists(
    "duplicate-rows", "in 2 of 26 rows of test: line 25 of test.jsonl like line 1 of test.jsonl;"
)
def _(study: Study) -> None:
    study.rows["test"] += study.rows["test"][:2]


@lists("contradictory-answers", "in 1 of 49 rows of train: line 49 of train.jsonl like line 1 of")
def _(study: Study) -> None:
    study.rows["train"].append({**study.rows["train"][0], "label": "timer"})


@lists(
    "test-in-train", "in 2 of 26 rows of test: line 25 of test.jsonl like line 8 of train.jsonl;"
)
def _(study: Study) -> None:
    study.rows["test"] += study.rows["train"][7:9]


@lists("validation-in-train", "line 25 of validation.jsonl like line 8 of train.jsonl")
def _(study: Study) -> None:
    study.rows["validation"].append(study.rows["train"][7])


@lists("test-in-validation", "line 25 of test.jsonl like line 8 of validation.jsonl")
def _(study: Study) -> None:
    study.rows["test"].append(study.rows["validation"][7])


@lists(
    "near-duplicates", "in 1 of 25 rows of test: line 25 of test.jsonl like line 5 of train.jsonl"
)
def _(study: Study) -> None:
    row = study.rows["train"][4]
    study.rows["test"].append({**row, "text": row["text"].upper() + " s"})


@refuses("one-label", "Every row of train has the label 'lights'")
def _(study: Study) -> None:
    for split in SPLITS:
        study.rows[split] = [{**r, "label": "lights"} for r in study.rows[split]]


@refuses("label-not-in-train", "('choir', 'opera') in 2 of 24 rows of test: lines 1 and 6 of test")
def _(study: Study) -> None:
    study.rows["test"][0]["label"], study.rows["test"][5]["label"] = "choir", "opera"


@lists(
    "dominant-answer",
    "20 of 24 rows of test have the answer 'lights': always predicting it scores 83 %",
)
def _(study: Study) -> None:
    for row in study.rows["test"][:20]:
        row["label"] = "lights"


@lists(
    "labels-alike",
    "'Music ' occurs as well as 'music', which counts as another answer, in 1 of 48",
)
def _(study: Study) -> None:
    study.rows["train"][20]["label"] = "Music "


# --- conversations -------------------------------------------------------------------------------


@refuses("messages-malformed", "Message 1 is not an object in 1 of 24 rows of test: line 3 of test")
def _(study: Study) -> None:
    study.chat()
    study.rows["test"][2]["chat"] = ["Hi"]


@refuses("unknown-role", "Message 2 has the role 'bit' in 2 of 48 rows of train: lines 1 and 5 of")
def _(study: Study) -> None:
    study.chat()
    for i in (0, 4):
        study.rows["train"][i]["chat"][1]["role"] = "bit"


@refuses("empty-message", "Message 1 (user) has no content in 1 of 24 rows of test: line 9 of test")
def _(study: Study) -> None:
    study.chat()
    study.rows["test"][8]["chat"][0]["content"] = None


@refuses("tool-messages", "in 1 of 48 rows of train: line 4 of train.jsonl")
def _(study: Study) -> None:
    study.chat()
    study.rows["train"][3]["chat"][1]["tool_calls"] = [{"name": "lamp", "arguments": {}}]


@refuses("turn-weight", "Message 2 has `weight`: 0.5, and a turn is trained on or not in 1 of 24")
def _(study: Study) -> None:
    study.chat()
    study.rows["test"][3]["chat"][1]["weight"] = 0.5


@refuses("all-turns-masked", "are all masked (weight 0 or the like)")
def _(study: Study) -> None:
    study.chat()
    study.rows["train"][3]["chat"][1]["train"] = False


@refuses("row-mask-unread", "A column 'loss_mask' beside the messages")
def _(study: Study) -> None:
    study.chat()
    study.rows["train"][3]["loss_mask"] = [0, 1]  # type: ignore[assignment]


@refuses("tools-malformed", "Tools that are not a list of functions with names in 1 of 48 rows")
def _(study: Study) -> None:
    study.chat()
    study.rows["train"][3]["tools"] = "lamp()"


@lists("tools-unwritten", "does not write the tools of the row: they are in no prompt in 1 of 24")
def _(study: Study) -> None:
    study.chat()
    study.rows["test"][3]["tools"] = '[{"name": "lamp"}]'


@lists("empty-system", "An empty system message is left out in 1 of 24 rows of test")
def _(study: Study) -> None:
    study.chat()
    study.rows["test"][3]["chat"].insert(0, {"role": "system", "content": ""})


@lists("message-keys-unread", "Messages have keys that nothing reads (mood) in 1 of 48 rows")
def _(study: Study) -> None:
    study.chat()
    study.rows["train"][3]["chat"][0]["mood"] = "dry"


@refuses("no-assistant-turn", "in 1 of 24 rows of test: line 2 of test.jsonl")
def _(study: Study) -> None:
    study.chat()
    study.rows["test"][1]["chat"].pop()


@refuses("assistant-first", "in 1 of 48 rows of train: line 48 of train.jsonl")
def _(study: Study) -> None:
    study.chat()
    study.rows["train"][47]["chat"].pop(0)


@lists("after-last-answer", "are ignored in 1 of 48 rows of train: line 2 of train.jsonl")
def _(study: Study) -> None:
    study.chat()
    study.rows["train"][1]["chat"].append({"role": "user", "content": "thanks"})


@refuses("chat-without-chat", "but the rows are prompts and completions")
def _(study: Study) -> None:
    study.sft()
    study.values["task"]["system"] = "Be brief."


@refuses("no-chat-template", "tokenizer has no chat template")
def _(study: Study) -> None:
    study.chat()
    del study.values["task"]["chat_template"]


@refuses("chat-no-turn-end", "no end token: answers would never end")
def _(study: Study) -> None:
    study.chat(CHAT.replace("{{ eos_token + ' ' }}", ""))


@refuses("chat-template-refused", "TemplateError: too long in 48 of 48 rows of train")
def _(study: Study) -> None:
    study.chat(
        "{% if messages[0]['content'] | length > 3 %}{{ raise_exception('too long') }}{% endif %}"
        + CHAT
    )


@lists("system-merged", "they stand in front of the first user message in 48 of 48 rows of train")
def _(study: Study) -> None:
    study.chat(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + CHAT
    )
    study.values["task"]["system"] = "Be brief."


@refuses("chat-prefix-broken", "once more messages follow")
def _(study: Study) -> None:
    study.chat("{{ messages | length }} " + CHAT)


@refuses("chat-answer-differs", "no prediction could begin like it")
def _(study: Study) -> None:
    said = "{{ m['content'] + ' ' + eos_token + ' ' }}"
    study.chat(
        "{% for m in messages %}{{ m['role'] + ' : ' }}{% if m['role'] == 'assistant' %}so : "
        f"{{% generation %}}{said}{{% endgeneration %}}{{% else %}}{said}{{% endif %}}"
        "{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
    )


@refuses(
    "chat-marks", "marks 0 stretches as generated where the conversation has 1 assistant turns"
)
def _(study: Study) -> None:
    study.chat(CHAT + "{% if false %}{% generation %}{% endgeneration %}{% endif %}")


@refuses("control-token-in-text", "message 1 holds the control token '[EOS]'")
def _(study: Study) -> None:
    study.chat()
    study.rows["test"][5]["chat"][0]["content"] += " [EOS]"


# --- tokens and base -----------------------------------------------------------------------------


@lists(
    "rows-cut", "Over task.max_length = 8 (up to 17 tokens): 9 tokens of their input, no supervised"
)
def _(study: Study) -> None:
    study.values["task"]["max_length"] = 8
    study.rows["test"][2]["text"] += " lamp" * 10


@refuses(
    "completion-too-long", "task.max_length = 24 (up to 32 tokens) in 1 of 24 rows of test: line 7"
)
def _(study: Study) -> None:
    study.sft()
    study.values["task"]["max_length"] = 24
    study.rows["test"][6]["json"] = "lamp " * 31


@refuses("longer-than-positions", "(83 of 64) in 1 of 24 rows of test: line 24 of test.jsonl")
def _(study: Study) -> None:
    study.values["task"]["max_length"] = 256
    study.rows["test"][23]["text"] += " lamp" * 77


@refuses("token-beyond-embedding", "('<new>' is number")
def _(study: Study) -> None:
    folder = study.model("grown")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    study.rows["test"][3]["text"] += " <new>"


@refuses("no-end-token", "The tokenizer has no end token")
def _(study: Study) -> None:
    study.sft()
    study.model("endless", eos_token=None)


@refuses("no-pad-token", "neither a padding nor an end token")
def _(study: Study) -> None:
    study.model("padless", eos_token=None, pad_token=None)


@lists(
    "unknown-tokens",
    "of all tokens are '[UNK]') in 6 of 24 rows of test: lines 1, 2, 3, 4, 5 and 1",
)
def _(study: Study) -> None:
    for row in study.rows["test"][:6]:
        row["text"] = "включи лампу " + row["text"]


@lists("ends-with-padding", "'[PAD]' in 1 of 24 rows of test: line 9 of test.jsonl")
def _(study: Study) -> None:
    study.rows["test"][8]["text"] += " [PAD]"


@lists(
    "tied-head", "Full fine-tuning trains the matrix that `lm_head` and `model.embed_tokens` share"
)
def _(study: Study) -> None:
    study.sft()
    study.values["methods"]["contenders"] = ["full"]


@lists("tied-head", "LoRA trains `lm_head`, whose weights `model.embed_tokens` shares")
def _(study: Study) -> None:
    study.sft()
    study.values["method"] = {"lora": {"config": {"target_modules": ["q_proj", "lm_head"]}}}


# --- what is done with them ----------------------------------------------------------------------


def named(case: Case) -> str:
    return case.code or "few-items"


@pytest.fixture
def study(tmp_path: Path, study_values: dict[str, Any], tiny_llama: Path) -> Study:
    return Study(tmp_path, study_values, tiny_llama)


def planned(study: Study) -> dict[str, Any]:
    study.write()
    return api.overview(parse_spec(study.values), study.folder)


def test_clean_study_warns_only_of_size(study: Study) -> None:
    """A study without issues has only the warning about its size."""
    study.values["budget"]["race"] = "off"  # its rungs come too early
    assert planned(study)["warnings"] == [
        "The test set has 24 items; below 30 its verdicts mean little. [test-too-small]"
    ]


@pytest.mark.parametrize("case", REFUSED, ids=named)
def test_fatal_issue_stops_before_training(study: Study, case: Case) -> None:
    """A fatal issue stops the study before any training."""
    case.spoil(study)
    study.write()
    with pytest.raises(PreflightError) as error:
        api.run(parse_spec(study.values), study.folder, study.folder / "out")
    assert error.value.code == case.code
    assert case.says in error.value.cause
    assert error.value.try_
    assert error.value.exit_code == 3
    assert not list((study.folder / "out").glob("trials/*"))
    with pytest.raises(PreflightError) as again:
        planned(study)
    assert str(again.value) == str(error.value), "plan and run say the same"


@pytest.mark.parametrize("case", LISTED, ids=named)
def test_other_issues_listed_once(study: Study, case: Case) -> None:
    """Every other issue is listed once."""
    case.spoil(study)
    found = [w for w in planned(study)["warnings"] if case.says in w]
    assert len(found) == 1
    assert not case.code or found[0].endswith(f"[{case.code}]")


def test_fatal_issues_reported_together(study: Study) -> None:
    """All fatal issues are reported at once."""
    study.rows["train"][4]["text"] = ""
    del study.rows["test"][1]["label"]
    study.write()
    with pytest.raises(PreflightError) as error:
        planned(study)
    assert error.value.code == "empty-value"
    assert "'text' is empty in 1 of 48 rows of train: line 5 of train.jsonl." in error.value.cause
    assert "\n[column-missing] No column 'label'" in error.value.cause
    assert error.value.try_.startswith("(1) remove these rows or fill them. (2) The row has: text")


def test_row_numbers_after_cut_and_sample(study: Study) -> None:
    """Row numbers are those of the file after cutting and sampling.

    Blank lines, a cut and a sample lie between the file and the split.
    """
    study.values["data"] = {"train": "t.jsonl", "limit": {"train": 30, "test": 10}}
    lines = [json.dumps({**r, "text": f"{r['text']} {i}"}) for i, r in enumerate(rows(), 1)]
    content = "\n".join(["", "", *(line.replace("timer", "\\u0007") for line in lines)])
    study.file("train", "t.jsonl", content)
    warned = [w for w in planned(study)["warnings"] if w.endswith("[control-characters]")]
    assert warned
    for warning in warned:
        found = re.search(r": lines? ([\d, ]+)", warning)
        assert found
        for number in re.findall(r"\d+", found[1]):
            assert "\\u0007" in content.split("\n")[int(number) - 1]


def test_warnings_in_terminal_and_report(study: Study) -> None:
    """Warnings appear on the command line and in the report."""
    study.values["methods"]["contenders"] = ["full"]
    study.values["method"] = {}
    study.rows["test"] += study.rows["train"][:1]
    study.write()
    report = api.run(parse_spec(study.values), study.folder, study.folder / "out")
    leaked = [w for w in report["warnings"] if w.endswith("[test-in-train]")]
    assert len(leaked) == 1
    assert "line 25 of test.jsonl like line 1 of train.jsonl" in leaked[0]
    assert "line 25 of test.jsonl" in (study.folder / "out" / "report.html").read_text()
    again = api.run(parse_spec(study.values), study.folder, study.folder / "out")
    assert again["warnings"] == report["warnings"]


def test_cached_tokens_match_training(study: Study, tiny_llama: Path) -> None:
    """The tokens prepared before training are those that are trained on.

    Long rows among short ones: the kept tokens are those that the task itself gives.
    """
    data = study.folder / "study" / "data"
    data.mkdir(parents=True)
    for split in SPLITS:
        write_jsonl(data / f"{split}.jsonl", own(split))
    options = {
        "columns": {"prompt": "text", "completion": "json"}, "max_length": 24,
        "longest_completion": "x",
    }  # fmt: skip
    task, tokenizer = SupervisedFineTuning(options), load_tokenizer(str(tiny_llama), None)
    faults = token_checks.check(data, task, tokenizer, token_checks.BaseLimits(1000, 1000))
    assert {f.code for f in faults} == {"rows-cut"}
    for split in SPLITS:
        given = task.encode(tokenizer, own(split))
        kept = load_or_encode(task, tokenizer, data, split, lambda: pytest.fail("not kept"))
        assert kept == given
        assert max(len(e.tokens) for e in kept) == 24


class Masked(SupervisedFineTuning):
    """A task that loses labels in three ways, by what a row asks."""

    def encode(self, tokenizer: Any, rows: Any) -> list[Example]:
        limit, found = self.options["max_length"], []
        for row in rows:
            (e,) = SupervisedFineTuning({**self.options, "max_length": 500}).encode(
                tokenizer, [row]
            )
            labels = list(e.labels)
            if row["text"] == "silent":
                labels = [IGNORE] * len(labels)
            if row["text"] == "endless":
                labels[-1] = IGNORE
            found.append(Example(e.tokens[:limit], tuple(labels[:limit])))
        return found


@pytest.mark.parametrize(
    ("text", "code", "fatal"),
    [
        ("silent", "nothing-supervised", True),
        ("endless", "end-not-supervised", False),
        ("lamp " * 10, "completions-cut", False),
    ],
)
def test_lost_labels_are_named(
    tmp_path: Path, tiny_llama: Path, text: str, code: str, fatal: bool
) -> None:
    """Labels that a task would lose are named."""
    data = tmp_path / "data"
    data.mkdir()
    for split in SPLITS:
        write_jsonl(data / f"{split}.jsonl", own(split))
    write_jsonl(data / "test.jsonl", [*own("test"), {"text": text, "json": "{}"}])
    options = {"columns": {"prompt": "text", "completion": "json"}, "max_length": 40}
    if code == "completions-cut":
        options["max_length"] = 10
        for split in SPLITS:
            short = [{"text": "lamp", "json": "{}"}] * 3
            write_jsonl(data / f"{split}.jsonl", short)
        write_jsonl(data / "test.jsonl", [*short, {"text": text, "json": "{}"}])
    faults = token_checks.check(
        data,
        Masked(options),
        load_tokenizer(str(tiny_llama), None),
        token_checks.BaseLimits(1000, 1000),
    )
    (found,) = [f for f in faults if f.code == code]
    assert (found.fatal, found.split, found.count) == (fatal, "test", 1)
    assert found.rows == (found.of - 1,)


def test_padding_offset_positions_excluded() -> None:
    """Positions behind a padding index do not count."""
    config = RobertaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    model = RobertaModel(config)
    assert token_checks.BaseLimits.of(model) == token_checks.BaseLimits(20, 32)
    model(input_ids=torch.full((1, 32), 5))  # the longest that it reads
    with pytest.raises(RuntimeError, match="out of bounds"):
        model(input_ids=torch.full((1, 33), 5))


# --- near-duplicates -----------------------------------------------------------------------------

LONG = "the quick brown fox jumps over the lazy dog and runs away from the {} in the morning"


def test_near_duplicates_verified_by_similarity() -> None:
    """Near duplicates are verified by their true similarity.

    By hand: sets of five-character pieces with 8 and 9 shared of 10 are in, with 7 are out.
    """
    one = near_duplicates.shingle_hashes("abcdefghijklmn")  # 14 characters: 10 pieces
    assert len(one) == 10
    assert near_duplicates.is_near_duplicate(
        one, near_duplicates.shingle_hashes("abcdefghijklm")
    )  # 9 of 10
    assert near_duplicates.is_near_duplicate(
        one, near_duplicates.shingle_hashes("ABCDEFGHIJKL")
    )  # 8 of 10, case aside
    assert not near_duplicates.is_near_duplicate(
        one, near_duplicates.shingle_hashes("abcdefghijk")
    )  # 7 of 10
    assert not near_duplicates.is_near_duplicate(
        one, near_duplicates.shingle_hashes("abcdefghijklmxyz")
    )  # 9 of 13
    train = [LONG.format(w) for w in ("lion", "house")] + ["nothing of the kind"]
    test = ["something else entirely", LONG.format("lions"), LONG.format("house")]
    found = near_duplicates.find_near_duplicates(train, test)
    assert found.pairs == [(1, 0)], "the equal text is another fault's"
    assert (found.n_train, found.n_test, found.complete) == (3, 2, True)


def test_skipped_checks_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that were skipped are reported."""

    def codes(train: list[str], test: list[str]) -> dict[str, DataIssue]:
        pairs = {"train": train, "validation": ["v"], "test": test}
        found = duplicates.check(
            {s: [PromptAnswer(t, "x") for t in texts] for s, texts in pairs.items()}
        )
        return {f.code: f for f in found}

    train = [f"{i} is a number of its own" for i in range(50)]
    assert not codes(train, ["quite different"])
    with monkeypatch.context() as patch:
        patch.setattr(near_duplicates, "MAX_TEXTS", 20)
        assert (
            "in 1 texts of test and 20 of train"
            in codes(train, ["q"])["near-duplicates-sampled"].what
        )
    monkeypatch.setattr(near_duplicates, "MAX_COMPARISONS", 10)
    boilerplate = [LONG.format(f"{i:06d}{'xyz' * 8}") for i in range(50)]
    apart = [LONG.format(f"{'abc' * 12}{i}") for i in range(5)]
    assert "near-duplicates-cut-short" in codes(boilerplate, apart)


# --- the page ------------------------------------------------------------------------------------


def test_docs_list_every_issue() -> None:
    """The page in the docs lists every issue that the source names."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (fatal|listed) \|", DOCS.read_text(), re.MULTILINE)
    source = "".join(
        p.read_text() for p in SOURCES.rglob("*.py") if "checks" in p.parts or p.stem in NAMES
    )
    for code, kind in rows:
        assert f'"{code}"' in source or f"[{code}]" in source or code in ACROSS, code
        cases = REFUSED if kind == "fatal" else LISTED
        assert code in {c.code for c in cases} | ELSEWHERE, f"{code} has no file of its own"
    named = set(re.findall(r'DataIssue(?:\.at)?\(\s*"([a-z0-9-]+)"', source))
    assert len(named) > 25
    assert named <= {code for code, _ in rows}, "each that the source names is on the page"
    assert {c.code for c in REFUSED} <= {code for code, kind in rows if kind == "fatal"}
    assert {c.code for c in LISTED} - {""} <= {code for code, kind in rows if kind == "listed"}


NAMES = (
    "messages",
    "findings",
    "forms",
    "tool_calls",
    "turn_weights",
    "template",
    "rows",
    "encoding",
    "compression",
    "delimited",
    "json_file",
    "files",
    "templates",
    "splits",
    "token_checks",
    "tied_weights",
    "time_budget",
    "classify",
    "sft",
    "written_tokens",
    "reference_checks",
    "causality",
    "open_study",
    "item_groups",
)
ACROSS = {"test-in-train", "validation-in-train", "test-in-validation"}
ELSEWHERE = {
    "nothing-supervised", "end-not-supervised", "completions-cut",
    "near-duplicates-sampled", "near-duplicates-cut-short", "chat-template-slow",
    # tests/data/test_chat_templates.py, tests/data/test_chat_rows.py
    "content-part-unread", "tool-call-malformed", "thoughts-unread", "history-unread",
    "tools-in-system", "documents-unwritten", "thoughts-unwritten", "role-unwritten",
    "call-ids-numbered", "date-in-prompt", "earlier-turns-not-supervised", "answer-rewritten",
    # tests/data/test_splits.py, tests/training/test_causality.py, tests/training/test_base_head.py
    "limit-below-labels", "base-not-causal", "head-replaced",
    # tests/tasks/test_references.py
    "reference-not-reachable", "reference-not-perfect", "reference-over-budget", "metric-failed",
    "special-token-in-text", "end-token-written", "begin-token-written", "special-tokens-kept",
    # tests/study/test_item_groups.py
    "few-groups", "one-test-group", "no-test-groups", "test-group-missing", "test-groups-cut-short",
}  # fmt: skip

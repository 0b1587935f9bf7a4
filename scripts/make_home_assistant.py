"""Make the home-assistant data: spoken commands with their intent and its exact JSON.

Runs by hand, before a release; stands outside the package. In: the English grammar of the PyPI
package ``home-assistant-intents`` (sentence templates) and ``home_assistant_words.toml`` (rooms,
devices, what nobody says). Out: ``src/bakeoff/data/assets/home_assistant/``: train, validation,
test and a README. The same seed and the same versions give the same bytes.

    python scripts/make_home_assistant.py

A *template* is one sentence pattern of the grammar; an intent with few patterns has them split at
their alternatives until it has enough ("what's the date", "tell me the date"). A template, a frame
(the text with its values blanked out) and a text each appear in one split only, and no text is a
near-duplicate of a text of another split, by the definition of the study's own check. Test and
validation have few rows of each template: rows of one template are answered alike, so that another
template says more than another row.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hassil.expression import (
    Alternative,
    Expression,
    ListReference,
    Permutation,
    RuleReference,
    Sequence,
    TextChunk,
)
from hassil.parse_expression import parse_sentence

from bakeoff.data.checks.near_duplicates import THRESHOLD, is_near_duplicate, shingle_hashes

HERE = Path(__file__).parent
OUT = HERE.parent / "src/bakeoff/data/assets/home_assistant"
SEED = 20261130
ROWS = {"test": 800, "validation": 400, "train": 1600}
SHARE = {"test": 0.4, "validation": 0.17}  # of an intent's templates; train has the rest
MAX_ROWS = {"test": 3, "validation": 4, "train": 1600}  # of one template
MIN_TEMPLATES = 16  # with fewer that sound natural, patterns are split at their alternatives
DRAWS = (
    3000  # tries per intent, shared by its templates: enough to find every wording of small ones
)
MIN_DRAWS = 40  # and at least these per template
PLURAL = re.compile(r"<(are_any|are_all|which|how_many|all)>")
MARK = re.compile("\x02([^\x03]*)\x03([^\x04]*)\x04")  # a value inside a draft: kind, words


class Row(NamedTuple):
    """One line of a data file, and the frame that decides which split may hold it."""

    text: str
    topic: str
    intent: str
    json: str
    template: str
    frame: str


@dataclass(frozen=True)
class Template:
    """One sentence pattern of the grammar, or one branch of it."""

    id: str
    intent: str
    expression: Expression
    block: Mapping[str, Any]
    pattern: str


@dataclass
class Draft:
    """What one walk through a template needs to know and has found out."""

    rng: random.Random
    template: Template
    plural: bool
    preposition: str
    media_class: str
    slots: dict[str, Any] = field(default_factory=dict)


class Grammar:
    """The English grammar narrowed by our words: yields templates and draws rows from them."""

    def __init__(self, grammar: Mapping[str, Any], words: Mapping[str, Any]) -> None:
        self.words = words
        self.lists: Mapping[str, Any] = grammar["lists"]
        self.intents: Mapping[str, Any] = grammar["intents"]
        self.topics = {i: topic for topic, intents in words["topics"].items() for i in intents}
        rules = grammar["expansion_rules"] | words["rules"]
        self.rules = {name: parse_sentence(text).expression for name, text in rules.items()}
        self.bad_frame = re.compile("|".join(words["reject"]["frame"]))
        self.bad_text = re.compile("|".join(words["reject"]["text"]))

    def templates(self) -> dict[str, list[Template]]:
        """Return the templates of each intent that is kept, in the grammar's order."""
        kept = (n for n in self.intents if n not in self.words["drop_intents"])
        return {name.removeprefix("Hass"): self._templates_of(name) for name in kept}

    def _templates_of(self, name: str) -> list[Template]:
        short = name.removeprefix("Hass")
        found = [
            Template(f"{short}/{i}/{j}", short, parse_sentence(text).expression, block, text)
            for i, block in enumerate(self.intents[name]["data"])
            for j, text in enumerate(block["sentences"])
        ]
        while sum(bool(self.rows(t, SEED, MIN_DRAWS)) for t in found) < MIN_TEMPLATES:
            split = [part for template in found for part in self._split(template)]
            if len(split) == len(found):
                break
            found = split
        return found

    def _split(self, template: Template) -> list[Template]:
        """Open the first alternative of a pattern: one template for each branch."""
        branches = {render(e): e for e in self._open(template.expression)}
        if len(branches) == 1:
            return [template]
        return [
            Template(f"{template.id}.{k}", template.intent, branch, template.block, pattern)
            for k, (pattern, branch) in enumerate(branches.items())
        ]

    def _open(self, e: Expression) -> list[Expression]:
        if isinstance(e, RuleReference):
            return self._open(self.rules[e.rule_name])
        if isinstance(e, Alternative) and len(e.items) > 1:
            return list(e.items)
        if isinstance(e, (Sequence, Permutation, Alternative)):
            for i, item in enumerate(e.items):
                parts = self._open(item)
                if len(parts) > 1:
                    kind = Permutation if isinstance(e, Permutation) else Sequence
                    return [kind(items=[*e.items[:i], p, *e.items[i + 1 :]]) for p in parts]
        return [e]

    def rows(self, template: Template, seed: int, n_draws: int) -> list[Row]:
        """Draw the natural-sounding rows of a template, each text once, in random order."""
        rng = random.Random(f"{seed}/{template.id}")
        found: dict[str, Row] = {}
        for _ in range(n_draws):
            row = self._draw(template, rng)
            if row is not None:
                found.setdefault(row.text, row)
        return list(found.values())

    def _draw(self, template: Template, rng: random.Random) -> Row | None:
        pattern = template.pattern
        place = "on" if "{floor}" in pattern else "at" if "{zone:" in pattern else "in"
        media = rng.choice(list(self.words["media"]))
        draft = Draft(rng, template, bool(PLURAL.search(pattern)), place, media)
        marked = re.sub(r"\s+", " ", self._walk(template.expression, draft)).strip()
        frame, text = MARK.sub(r"{\1}", marked), MARK.sub(r"\2", marked)
        if self.bad_frame.search(frame) or self.bad_text.search(text):
            return None
        slots = dict(template.block.get("slots", {})) | draft.slots
        record = {"intent": template.intent} | dict(sorted(slots.items()))
        compact = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
        topic = self.topics[template.intent]
        return Row(text, topic, template.intent, compact, template.id, frame)

    def _walk(self, e: Expression, draft: Draft) -> str:
        if isinstance(e, TextChunk):
            return str(e.original_text)
        if isinstance(e, Alternative):
            return self._walk(choose(e, draft), draft)
        if isinstance(e, Permutation):
            items = draft.rng.sample(e.items, len(e.items))
            return " ".join(self._walk(i, draft) for i in items)
        if isinstance(e, Sequence):
            return "".join(self._walk(i, draft) for i in e.items)
        if isinstance(e, RuleReference):
            return self._rule(e.rule_name, draft)
        if isinstance(e, ListReference):
            return self._value(e, draft)
        raise TypeError(f"unknown expression {type(e).__name__}")

    def _rule(self, name: str, draft: Draft) -> str:
        if name == "in":
            return draft.preposition
        if name == "light" and draft.plural:
            return "lights"
        if name == "is":  # the subject is one named thing, or a plural
            return "is" if "{name}" in draft.template.pattern else "are"
        return self._walk(self.rules[name], draft)

    def _value(self, e: ListReference, draft: Draft) -> str:
        """Choose a value of a list, note it as a slot, return its words marked with their kind."""
        name, rng, words = e.list_name, draft.rng, self.words
        if name in words["numbers"]:
            number = rng.choice(words["numbers"][name])
            draft.slots[e.slot_name] = number * self.lists[name]["range"].get("multiplier", 1)
            return mark("number", str(number))
        if name in self.lists and not self.lists[name].get("wildcard"):
            return self._listed(e, draft)
        if name == "name":
            kind, choices = self._names(draft.template)
        elif name == "floor":
            kind = rng.choice(["floor", "floor", "stairs"])
            choices = words["floors" if kind == "floor" else "stairs"]
        elif name == "search_query":
            kind, choices = "query", words["media"][draft.media_class]
        else:
            kind, choices = (
                words["list_kinds"][name],
                words["wildcards"].get(name) or words["areas"],
            )
        draft.slots[e.slot_name] = value = rng.choice(choices)
        return mark(kind, value)

    def _listed(self, e: ListReference, draft: Draft) -> str:
        """Choose one of the grammar's own values: its words and its meaning may differ."""
        name = e.list_name
        narrowed = self.words["lists"].get(name)
        if narrowed:
            said, meant = draft.rng.choice(list(narrowed.items()))
        else:
            values = self.lists[name]["values"]
            if name == "media_class":
                values = [v for v in values if v["out"] == draft.media_class]
            value = draft.rng.choice(values)
            said, meant = self._walk(parsed(value["in"]), draft), value["out"]
        draft.slots[e.slot_name] = meant
        if name == "volume_step":  # "up" and "down" are part of the wording
            return str(said)
        return mark(self.words["list_kinds"].get(name, "state"), said.strip())

    def _names(self, template: Template) -> tuple[str, list[str]]:
        """Return the kind and the names of the devices that a template can mean."""
        names, kinds = self.words["names"], self.words["name_kinds"]
        for special in ("binary_sensor_open", "binary_sensor_occupancy"):
            if special.replace("binary_sensor", "bs") + "_states" in template.pattern:
                return "device", names[special]
        domains = template.block["requires_context"]["domain"]
        if "sensor" in domains and "value" in template.pattern:
            return "sensor", names["sensor"]
        return kinds.get(domains[0], "device"), [n for d in domains for n in names.get(d, [])]


@cache
def parsed(pattern: str) -> Expression:
    return parse_sentence(pattern).expression


def mark(kind: str, words: str) -> str:
    return f"\x02{kind}\x03{words}\x04"


def choose(e: Alternative, draft: Draft) -> Expression:
    """Choose a branch; plurals and prepositions follow from the rest of the sentence."""
    literal = {render(i).strip(): i for i in e.items}
    if draft.plural and e.is_optional and ("s" in literal or "es" in literal):
        return e.items[0]
    if {"in", "on"} <= set(literal) <= {"in", "on", "at", ""} and draft.preposition in literal:
        return literal[draft.preposition]
    return draft.rng.choice(e.items)


def render(e: Expression) -> str:
    """Write an expression as a pattern: equal text means equal expression."""
    if isinstance(e, TextChunk):
        return str(e.original_text)
    if isinstance(e, ListReference):
        return f"{{{e.list_name}:{e.slot_name}}}" if e.list_name != "name" else "{name}"
    if isinstance(e, RuleReference):
        return f"<{e.rule_name}>"
    if isinstance(e, Sequence):
        return "".join(render(i) for i in e.items)
    assert isinstance(e, (Alternative, Permutation))
    return "(" + (";" if isinstance(e, Permutation) else "|").join(map(render, e.items)) + ")"


def draw_all(grammar: Grammar, seed: int) -> dict[str, dict[str, list[Row]]]:
    """Return intent -> template -> rows, without the texts that mean two things."""
    drawn = {
        intent: {
            t.id: grammar.rows(t, seed, max(MIN_DRAWS, DRAWS // len(templates))) for t in templates
        }
        for intent, templates in grammar.templates().items()
    }
    meanings: dict[str, set[str]] = defaultdict(set)
    for by_template in drawn.values():
        for row in (r for rows in by_template.values() for r in rows):
            meanings[row.text].add(row.json)
    return {
        intent: {
            t: clear
            for t, rows in by_template.items()
            if (clear := [r for r in rows if len(meanings[r.text]) == 1])
        }
        for intent, by_template in drawn.items()
    }


def assign(rows: Mapping[str, list[Row]], rng: random.Random) -> dict[str, list[str]]:
    """Deal an intent's templates to the splits: at least one each, the richest to train."""
    order = rng.sample(list(rows), len(rows))
    order.sort(key=lambda t: len(rows[t]) == max(map(len, rows.values())))  # stable: richest last
    n_test = max(1, round(SHARE["test"] * len(order)))
    n_validation = max(1, round(SHARE["validation"] * len(order)))
    return {
        "test": order[:n_test],
        "validation": order[n_test : n_test + n_validation],
        "train": order[n_test + n_validation :],
    }


def interleave(queues: list[list[Row]]) -> Iterator[Row]:
    """Yield the first row of every queue, then the second, and so on."""
    for i in range(max(map(len, queues), default=0)):
        yield from (q[i] for q in queues if i < len(q))


def make(seed: int = SEED) -> dict[str, list[Row]]:
    """Make the three splits; test chooses its frames first, train takes what is left."""
    drawn = draw_all(load_grammar(), seed)
    dealt = {
        intent: assign(by_template, random.Random(f"{seed}/{intent}"))
        for intent, by_template in drawn.items()
    }
    others = OtherSplits()
    splits: dict[str, list[Row]] = {}
    for split, n_rows in ROWS.items():
        streams = [
            interleave([drawn[intent][t] for t in parts[split]]) for intent, parts in dealt.items()
        ]
        rows = fill(streams, n_rows, MAX_ROWS[split], others)
        others.add(rows)
        random.Random(f"{seed}/{split}").shuffle(rows)
        splits[split] = rows
    return splits


def fill(streams: list[Iterator[Row]], n_rows: int, most: int, others: OtherSplits) -> list[Row]:
    """Take a row from each intent in turn until there are enough: small intents run dry early.

    At most ``most`` rows of each template.
    """
    rows: list[Row] = []
    seen: set[str] = set()
    of_template: Counter[str] = Counter()
    while streams and len(rows) < n_rows:
        for stream in list(streams):
            row = next(
                (
                    r
                    for r in stream
                    if r.text not in seen and of_template[r.template] < most and not others.like(r)
                ),
                None,
            )
            if row is None:
                streams.remove(stream)
            elif len(rows) < n_rows:
                seen.add(row.text)
                of_template[row.template] += 1
                rows.append(row)
    return rows


class OtherSplits:
    """The rows of the splits that were made before: frames, and shingles for near-duplicates."""

    def __init__(self) -> None:
        self._frames: set[str] = set()
        self._shingles: list[np.ndarray[Any, np.dtype[np.uint64]]] = []
        self._with_shingle: dict[int, list[int]] = defaultdict(list)

    def add(self, rows: list[Row]) -> None:
        """Note the rows of a split."""
        self._frames |= {row.frame for row in rows}
        for row in rows:
            shingles = shingle_hashes(row.text)
            for shingle in shingles.tolist():
                self._with_shingle[shingle].append(len(self._shingles))
            self._shingles.append(shingles)

    def like(self, row: Row) -> bool:
        """Return whether another split has the row's frame or a near-duplicate of its text."""
        if row.frame in self._frames:
            return True
        shingles = shingle_hashes(row.text)
        shared = Counter(i for s in shingles.tolist() for i in self._with_shingle.get(s, ()))
        likely = (i for i, n in shared.items() if n >= THRESHOLD * len(shingles))
        return any(is_near_duplicate(shingles, self._shingles[i]) for i in likely)


@cache
def load_grammar() -> Grammar:
    source = files("home_assistant_intents") / "data" / "en.json"
    words = tomllib.loads((HERE / "home_assistant_words.toml").read_text(encoding="utf-8"))
    return Grammar(json.loads(source.read_text(encoding="utf-8")), words)


def to_jsonl(rows: list[Row]) -> str:
    """Write rows as JSON lines; the frame is not part of the data."""
    lines = ({k: v for k, v in r._asdict().items() if k != "frame"} for r in rows)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def readme(splits: Mapping[str, list[Row]], seed: int) -> str:
    """Describe the data: where it is from, under which licence, how it was made."""
    counts = "\n".join(
        f"| {name} | {len(rows)} | {len({r.intent for r in rows})} |"
        f" {len({r.template for r in rows})} | {min(Counter(r.intent for r in rows).values())}"
        f" to {max(Counter(r.intent for r in rows).values())} |"
        for name in ("train", "validation", "test")
        if (rows := splits[name])
    )
    version = importlib.metadata.version("home-assistant-intents")
    text = (HERE / "home_assistant_readme.md").read_text(encoding="utf-8")
    return text.format(version=version, seed=seed, counts=counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    splits = make(args.seed)
    contents = {f"{name}.jsonl": to_jsonl(rows) for name, rows in splits.items()}
    contents["README.md"] = readme(splits, args.seed)
    for name, content in contents.items():
        (args.out / name).write_text(content, encoding="utf-8", newline="\n")
        print(f"{args.out / name}: {len(content.encode()):,} bytes")


if __name__ == "__main__":
    main()

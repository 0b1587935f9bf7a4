"""Groups of test items: by column, by near-duplicate prompts; frozen with the study, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bakeoff.core.warning_codes import VERDICT, group_of, with_code
from bakeoff.data.checks.near_duplicates import cluster_near_duplicates
from bakeoff.study.config import parse_spec
from bakeoff.study.config.inputs import DataSpec
from bakeoff.study.monitoring.progress import Progress
from bakeoff.study.record import item_fields
from bakeoff.study.setup import compatibility
from bakeoff.study.setup.item_groups import ItemGroups, find_item_groups
from bakeoff.study.setup.open_study import open_study
from bakeoff.study.setup.provenance import describe_study, frozen_values
from bakeoff.study.setup.study import prior_trial
from bakeoff.testing.tiny import rows, write_jsonl

LONG = "Please turn the {} in the large room on the second floor of the house off again, thank you."


def find(rows: list[dict[str, Any]], **data: Any) -> tuple[ItemGroups | None, list[str]]:
    spec = DataSpec(train="rows.jsonl", **data)
    groups, issues = find_item_groups(spec, rows, lambda row: str(row["prompt"]))
    return groups, [issue.code for issue in issues]


def rows_of(*groups: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"prompt {i}", "source": g} for i, g in enumerate(groups)]


def other(i: int) -> str:
    return " ".join(f"w{i}x{k}" for k in range(6))


MANY = [f"s{i // 3}" for i in range(60)]


def test_groups_by_column() -> None:
    groups, issues = find(rows_of(*MANY), group="source")
    assert groups == ItemGroups(tuple(i // 3 for i in range(60)), "column 'source'")
    assert issues == []


def test_no_groups_without_a_column_or_where_the_study_asks_for_none() -> None:
    assert find(rows_of(*MANY)) == (None, [])
    assert find(rows_of(*MANY), group="source", item_groups="none") == (None, [])


def test_every_item_its_own_group_is_no_group() -> None:
    assert find(rows_of(*range(40)), group="source") == (None, [])


def test_numbers_and_text_are_one_value_as_in_the_split() -> None:
    groups, _ = find(rows_of(1, "1", 2, *MANY), group="source")
    assert groups is not None
    assert groups.numbers[:3] == (0, 0, 1)


def test_rows_without_a_value_are_groups_of_their_own() -> None:
    groups, issues = find([*rows_of(*MANY), *rows_of(None, None, "")], group="source")
    assert groups is not None
    assert groups.numbers[-3:] == (20, 21, 22)
    assert issues == ["test-group-missing"]


def test_test_file_without_the_column_is_named() -> None:
    plain = [{"prompt": f"p{i}"} for i in range(40)]
    groups, issues = find_item_groups(
        DataSpec(train="a", test="b", group="source"), plain, lambda row: str(row["prompt"])
    )
    assert groups is None
    assert [i.code for i in issues] == ["no-test-groups"]
    assert "no column 'source'" in issues[0].what


def test_a_single_group_counts_as_independent_items() -> None:
    assert find(rows_of(*["s"] * 40), group="source") == (None, ["one-test-group"])


@pytest.mark.parametrize(
    ("sources", "few"),
    [
        ([f"s{i % 9}" for i in range(90)], True),
        ([f"s{i % 10}" for i in range(90)], False),
        (["big"] * 60 + [f"s{i}" for i in range(20)], True),
    ],
    ids=["nine", "ten", "unequal"],
)
def test_few_or_unequal_groups_are_warned_of(sources: list[str], few: bool) -> None:
    groups, issues = find(rows_of(*sources), group="source")
    assert groups is not None
    assert issues == (["few-groups"] if few else [])
    assert group_of(with_code("text", "few-groups")) == VERDICT


def test_near_duplicate_prompts_are_a_group() -> None:
    texts = [LONG.format(w) for w in ("lamp", "lamps", "fan")]
    texts += [other(i) for i in range(20)]
    rows = [{"prompt": t} for t in [*texts, texts[5]]]
    groups, issues = find(rows, item_groups="near-duplicates")
    assert groups is not None
    assert groups.source == "near-duplicate prompts"
    assert groups.numbers[:3] == (0, 0, 0)
    assert groups.numbers[5] == groups.numbers[-1], "equal prompts, too"
    assert len(set(groups.numbers)) == 21
    assert issues == []


def test_column_and_near_duplicates_are_joined() -> None:
    """a-b by column, b-c by prompt: one group of three."""
    prompts = ["first thing of all", LONG.format("lamp"), LONG.format("lamps")]
    prompts += [other(i) for i in range(20)]
    sources = ["a", "a", "b", *(f"s{i}" for i in range(20))]
    rows = [{"prompt": p, "source": s} for p, s in zip(prompts, sources, strict=True)]
    groups, _ = find(rows, group="source", item_groups="near-duplicates")
    assert groups is not None
    assert groups.numbers[:4] == (0, 0, 0, 1)
    assert groups.source == "column 'source' and near-duplicate prompts"


def test_clusters_are_chains_of_near_duplicates() -> None:
    """Neighbours of a chain are alike, its ends are not; the order of the texts does not matter."""
    words = [f"word{i:02d}" for i in range(40)]
    chain = [" ".join(words[i : i + 20]) for i in range(0, 8, 2)]
    texts = [*chain, "nothing of the kind at all"]
    for order in (range(5), (3, 0, 4, 2, 1)):
        clusters, complete = cluster_near_duplicates([texts[i] for i in order])
        together = {i for i, c in zip(order, clusters, strict=True) if c == clusters[0]}
        assert together == {0, 1, 2, 3}
        assert complete


def test_clusters_of_boilerplate_take_few_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five hundred texts that are all alike: one cluster, within a limit of 600 comparisons."""
    monkeypatch.setattr("bakeoff.data.checks.near_duplicates.MAX_COMPARISONS", 600)
    texts = [f"{LONG} {LONG} number {i}" for i in range(500)]
    clusters, complete = cluster_near_duplicates(texts)
    assert len(set(clusters)) == 1
    assert complete
    monkeypatch.setattr("bakeoff.data.checks.near_duplicates.MAX_COMPARISONS", 10)
    rows = [{"prompt": t} for t in texts[:40]]
    assert find(rows, item_groups="near-duplicates")[1] == ["test-groups-cut-short"]


def test_record_has_the_groups_and_older_studies_have_none() -> None:
    groups = ItemGroups((0, 0, 1), "column 'source'")
    stored = json.loads(json.dumps({"references": ["a"], "groups": groups.to_json()}))
    known = {"references": ("a",)}
    assert item_fields(stored) == {
        **known,
        "groups": (0, 0, 1),
        "group_source": "column 'source'",
    }
    assert item_fields({"references": ["a"], "groups": None}) == known
    assert item_fields({"references": ["a"]}) == known


def test_changed_groups_are_another_study() -> None:
    """The hash of the groups is frozen; a study without groups equals one of an older version."""
    frozen = {"groups": ItemGroups((0, 0, 1), "column 'a'").frozen_value()}
    other = {"groups": ItemGroups((0, 1, 1), "column 'a'").frozen_value()}
    assert [d.split(":")[0] for d in compatibility.differences(frozen, other)] == ["groups.sha256"]
    assert compatibility.differences({}, {"groups": None}) == []


def test_reading_keys_are_not_compared(study_values: dict[str, Any]) -> None:
    study_values["data"] |= {"group": "source", "item_groups": "near-duplicates"}
    assert (
        not {"group", "item_groups"}
        & compatibility.comparable_spec(parse_spec(study_values))["data"].keys()
    )


def test_study_has_groups_and_trials_do_not(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A study with a test file: groups change what is frozen of the study, but no trial's id."""
    for split in ("validation", "test"):
        study_values["data"][split] = str(write_jsonl(tmp_path / f"{split}.jsonl", rows()))
    studies = {}
    for column in (None, "template"):
        data = study_values["data"] | ({} if column is None else {"group": column})
        spec = parse_spec(study_values | {"data": data})
        studies[column] = open_study(spec, tmp_path, tmp_path / "out", Progress())
    plain, grouped = studies[None], studies["template"]
    assert plain.groups is None
    assert grouped.groups is not None
    assert len(set(grouped.groups.numbers)) == len({row["template"] for row in rows()}) == 12
    one, other = (prior_trial(s, s.entries[0]).id for s in (plain, grouped))
    assert one == other
    about = json.loads(json.dumps(describe_study(grouped, {})))
    assert item_fields(about) == {
        "references": tuple(about["references"]),
        "groups": grouped.groups.numbers,
        "group_source": "column 'template'",
    }
    assert "groups" not in item_fields(describe_study(plain, {}))
    changes = compatibility.differences(frozen_values(plain), frozen_values(grouped))
    assert {c.split(":")[0] for c in changes} == {"groups.source", "groups.sha256"}

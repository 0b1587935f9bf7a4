"""What `bakeoff plan` says that a study can show, in words."""

from __future__ import annotations

from typing import Any

import pytest

from bakeoff.cli.plan import describe_groups, describe_promise, show_price, show_rounds


@pytest.fixture
def overview() -> dict[str, Any]:
    look = {"replicates": 3, "half_width": 0.0584, "detectable": 0.0804}
    price = {"replicates": 3.0, "control_replicates": 3.0, "runs": 28.8, "seconds": None}
    return {
        "n_items": {"test": 1319},
        "margin": 0.02,
        "looks": [3, 5, 8],
        "settings": 5,
        "rungs": [30],
        "keep": [2],
        "methods": [{}] * 4,
        "trials": 160,
        "steps_raced": 22_080,
        "most_in_lanes": None,
        "estimate": None,
        "groups": None,
        "price": {
            "first": price,
            "expected": {**price, "replicates": 5.2, "control_replicates": 6.36, "runs": 52.7},
            "most": {**price, "replicates": 8.0, "control_replicates": 8.0, "runs": 76.8},
        },
        "promise": {
            "first": look,
            "last": {"replicates": 8, "half_width": 0.0344, "detectable": 0.0447},
            "floor": 0.0204,
            "equivalence_power": 0.0,
            "equivalence_possible": False,
            "equivalence_items": 3711,
        },
    }


def test_promise_in_words(overview: dict[str, Any]) -> None:
    first, last, floor, equivalence = describe_promise(overview)
    assert first.startswith("after 3 replicates: intervals of about ±5.8 points; a true difference")
    assert "of 4.5 points would be found in 80 % of such studies (margin: 2)" in last
    assert floor.endswith("below ±2.0 points at 1,319 items")
    assert equivalence == (
        "1,319 items cannot show that a method is equivalent within 2 points, at any number of "
        "seeds; about 3,700 items do in 80 % of such studies"
    )
    assert describe_promise({**overview, "promise": None}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"equivalence_possible": True}, "1,319 items and 8 replicates cannot show that"),
        ({"equivalence_items": None}, "no number of items does, as seeds differ too much"),
        (
            {"equivalence_power": 0.428},
            "called equivalent within 2 points in 43 % of such studies;",
        ),
        ({"equivalence_power": 0.9, "equivalence_items": 1319}, "in 90 % of such studies"),
    ],
)
def test_equivalence_in_words(overview: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    assert said in describe_promise({**overview, "promise": overview["promise"] | changes})[-1]


def test_single_look_has_one_promise(overview: dict[str, Any]) -> None:
    lines = describe_promise({**overview, "looks": [3]})
    assert sum("would be found" in line for line in lines) == 1


def test_groups_in_words(overview: dict[str, Any]) -> None:
    assert describe_groups(overview) == []
    groups = {"source": "column 'template'", "n": 41, "design_effect": 4.0}
    (line,) = describe_groups({**overview, "groups": groups})
    assert line == (
        "the 1,319 test items come in 41 groups by column 'template': they tell about as much as "
        "330 independent ones"
    )


def test_price_and_rounds_printed(
    overview: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    show_rounds({**overview, "most_in_lanes": 16})
    show_price(overview)
    said = " ".join(capsys.readouterr().out.split())
    assert "analysed after 3, 5 and 8 replicates" in said
    assert "up to 16 replicates, if the cost probe finds" in said
    assert "expected 5.2 6.4 53" in said
    assert "minutes" not in said
    timed = {k: {**p, "seconds": 90.0} for k, p in overview["price"].items()}
    show_price({**overview, "price": timed, "estimate": {}, "looks": [3]})
    assert "in all 8 8 77 1.5" in " ".join(capsys.readouterr().out.split())

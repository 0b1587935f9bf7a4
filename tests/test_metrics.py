"""Metrics score each item; hand-made answers."""

from bakeoff.metrics import accuracy, exact_match, json_match


def test_accuracy() -> None:
    assert accuracy.score(["a", "b"], ["a", "a"]) == [1.0, 0.0]


def test_exact_match_forgives_white_space_at_the_ends_only() -> None:
    assert exact_match.score([" a b\n", "a  b"], ["a b", "a b"]) == [1.0, 0.0]


def test_json_match_compares_values() -> None:
    truth = '{"a":1,"b":[true,"x"]}'
    answers = [
        '{"b": [true, "x"], "a": 1}',
        '{"a":1,"b":[1,"x"]}',
        '{"a":1}',
        '{"a":1,"b":[true,"x"],"c":null}',
        "not json",
        "",
    ]
    assert json_match.score(answers, [truth] * 6) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert json_match.score(["null"], ["null"]) == [1.0]

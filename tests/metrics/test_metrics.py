"""Metrics score one item each; every expected value is worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from bakeoff.metrics._text import UnusableReference
from bakeoff.metrics.builtin import (
    accuracy,
    chrf,
    contains,
    exact_match,
    json_fields,
    json_match,
    json_valid,
    loss,
    numeric,
    regex,
    token_f1,
)

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_accuracy() -> None:
    assert accuracy.score("a", "a") == 1.0
    assert accuracy.score("a ", "a") == 0.0


def test_exact_match_ignores_outer_whitespace() -> None:
    """Exact match ignores outer white space and how an accent is encoded."""
    assert exact_match.score(" a b\n", "a b") == 1.0
    assert exact_match.score("a  b", "a b") == 0.0
    assert exact_match.score(COMPOSED, DECOMPOSED) == 1.0
    assert exact_match.score("A", "a") == 0.0
    assert exact_match.score("STRASSE", "straße", ignore_case=True) == 1.0


def test_contains() -> None:
    assert contains.score(f"It is {DECOMPOSED}.", f" {COMPOSED} ") == 1.0
    assert contains.score("It is Paris.", "paris") == 0.0
    assert contains.score("It is Paris.", "paris", ignore_case=True) == 1.0
    assert contains.score("東京です", "東京") == 1.0


NUMBERS = {
    # GSM8K and MetaMathQA's own forms
    "She has 3 * 6 = <<3*6=18>>18 left.\n#### 18": 18,
    "the product is $4^2 = \\boxed{16}$.The answer is: 16": 16,
    "The final answer is 7. It was 9 before.": 7,
    "#### 5\n\nQuestion: more?\n#### 6": 6,
    "THE ANSWER IS 12 apples, not 13": 12,
    "The answer is:\n\n8\n9": 8,
    # a marker with no number after it in its line
    "The answer is: none.\n5": None,
    # the last number, where there is no marker
    "So 3 + 4 = 7.": 7,
    "no number at all": None,
    "": None,
    # thousands, decimals, signs, currency, percent
    "The answer is: $1,234.50": 1234.5,
    "1,000,000": 1_000_000,
    "1\u202f234\u202f567": 1_234_567,
    "1{,}234": 1234,
    "3,5": None,
    "12,34,567": 1_234_567,
    "it costs 7,00,000": 700_000,
    "1 000": 1000,
    "it is 7'000": 7000,
    "7’000.50": 7000.5,
    "1_000": 1000,
    "100 people in 2020 200 in 2021 300": 300,
    # runs that are not one number: no part of them is read
    "das macht 3.240,50": None,
    "0,123": None,
    "1,234,56": None,
    "1,000 000": None,
    "1 00 000": None,
    "10:30": None,
    "1.2.3": None,
    "2024-05-01": None,
    "12/05/2024": None,
    "3–4": None,
    "$5-$10": None,
    "1920x1080": None,
    "2\\sqrt{3}": None,
    "\\frac{\\pi}{2}": None,
    "10^2": None,
    "10²": None,
    "x^-2": None,
    "x/2": None,
    # scientific notation
    "1.5 × 10^3": 1500,
    "2·10⁻³": 0.002,
    "3 \\times 10^{4}": 30_000,
    # calculations, boxes and labels
    "The answer is 10 - 4 = 6": 6,
    "The answer is \\frac{3}{6} = \\frac{1}{2}.": 0.5,
    "The answer is 5 because 2 + 2 = 4": 5,
    "So \\boxed{42} as on page 7": 42,
    "\\boxed{x} and 3": None,
    "Answer: 42 (see step 3)": 42,
    "Answer: 16 - 3 = 13 eggs. 13 * 2 = 26": 26,
    "#### 18\nAnswer: 7": 18,
    "-5": -5,
    "\u22125": -5,
    "$-5": -5,
    "-$5": -5,
    "+5": 5,
    "x=-2": -2,
    "5-3": None,
    "(4)-3": 3,
    "- 5 apples": 5,
    "50%": 50,
    ".5": 0.5,
    "1.5e3": 1500,
    "12.": 12,
    "The answer is: x^23": None,
    "x_12 and 4^2": None,
    # fractions
    "3/4": 0.75,
    "-3 / 4": -0.75,
    "\\frac{1}{8}": 0.125,
    "\\boxed{-\\dfrac{1}{2}}": -0.5,
    "1 1/2": 1.5,
    "3\n1/2": 0.5,
    "3½": 3.5,
    "1/0": None,
    # other digits, and digits without end
    "١٢": 12,
    "9" * 5000: None,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_numeric_reads_expected_number(text: str) -> None:
    """`numeric` reads the expected number."""
    assert numeric.read_number(text) == NUMBERS[text]


COMMA = {
    "das macht 3.240,50": 3240.5,
    "1.000.000,25 €": 1_000_000.25,
    "1 234,5": 1234.5,
    "1'234,5": 1234.5,
    "1.000": 1000,
    "1,000": 1.0,
    "3,5": 3.5,
    ",5": 0.5,
    "3,5e3": 3500,
    "3,5/2": 1.75,
    "1.5": None,
    "0.5": None,
    "1,00,000": None,
    "1,234.5": None,
}


@pytest.mark.parametrize("text", COMMA)
def test_numeric_with_a_decimal_comma(text: str) -> None:
    assert numeric.read_number(text, decimal="comma") == COMMA[text]


def test_numeric_compares_whole_numbers_only() -> None:
    """Wrong answers that share a piece with the reference score 0, if it can be read at all."""
    for wrong, truth in {
        "it costs 7,00,000": "it costs 1,00,000",
        "The answer is 1 999": "The answer is 1 000",
        "it is 7'000": "it is 1'000",
        "20000000000000001": "20000000000000000",
    }.items():
        assert (numeric.score(wrong, truth), numeric.score(truth, truth)) == (0.0, 1.0)
    for reference, decimal, options in (
        ("das macht 3.240,50", "point", {"decimal": "comma"}),
        ("das macht 3,240.50", "comma", {"decimal": "point"}),
        ("at 10:30", "point", {}),
    ):
        with pytest.raises(UnusableReference, match="is not one number") as error:
            numeric.score("9", reference, decimal=decimal)
        assert error.value.options == options
    assert numeric.score("9.999,50", "3.240,50", decimal="comma") == 0.0
    assert numeric.score("3240,5", "3.240,50", decimal="comma") == 1.0
    assert numeric.score("3.240,50", "50") == 0.0
    with pytest.raises(ValueError, match="decimal"):
        numeric.check(decimal="dot")


def test_numeric() -> None:
    assert numeric.score("It is 18.0", "... #### 18") == 1.0
    assert numeric.score("20/35", "#### 0.5714285714285714") == 1.0
    assert numeric.score("nothing", "#### 18") == 0.0
    assert numeric.score("18.4", "18") == 0.0
    assert numeric.score("18.4", "18", tolerance=0.5) == 1.0
    assert numeric.score("18.6", "18", tolerance=0.5) == 0.0
    assert numeric.score("It is 18", "The answer is: 18", marker=True) == 0.0
    assert numeric.score("The answer is 18", "The answer is: 18", marker=True) == 1.0
    with pytest.raises(ValueError, match="no number"):
        numeric.score("18", "The answer is: x^{2} + y_1")
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance"):
            numeric.check(tolerance=wrong)


def test_numeric_matches_peft_benchmark() -> None:
    """`numeric` agrees with the answers that PEFT's benchmark extracts."""
    # its own example (method_comparison/MetaMathQA/utils.py), and what its rules make of others
    theirs = {
        "dot product ... equal to $4^2 = \\boxed{16}$.The answer is: 16": 16,
        "The answer is: 50%": 50,
        "The answer is: $3.50.": 3.5,
        "#### 20/35": 20 / 35,
        "16": None,
    }
    for text, value in theirs.items():
        assert numeric.read_number(text, marker=True) == value


def test_metrics_compare_composed_texts() -> None:
    """Two encodings of an accent are equal, on both sides and in a pattern."""
    for a, b in itertools.product((COMPOSED, DECOMPOSED), repeat=2):
        scores = [
            accuracy.score(a, b),
            exact_match.score(a, b),
            contains.score(f"un {a} noir", b),
            token_f1.score(a, b),
            chrf.score(a, b),
            regex.score(f"Answer: {a}", b, pattern=r"Answer: (\w+)"),
            regex.score(f"un {a}", "", pattern=b),
            json_match.score(f'{{"{a}": "{a}"}}', f'{{"{b}": "{b}"}}'),
            json_fields.score(f'{{"{a}": "{a}"}}', f'{{"{b}": "{b}"}}'),
        ]
        assert scores == [1.0] * len(scores)


def test_no_break_space_is_not_a_space() -> None:
    """Except at the ends, and for words."""
    assert exact_match.score("\u00a012 km\u202f", "12 km") == 1.0
    assert exact_match.score("12\u00a0km", "12 km") == 0.0
    assert contains.score("12\u00a0km", "12 km") == 0.0
    assert token_f1.score("12\u00a0km", "12 km") == 1.0


def test_regex_without_group() -> None:
    """A regex without a group requires a match."""
    assert regex.score("Answer: B", "whatever", pattern=r"^Answer: [A-D]$") == 1.0
    assert regex.score("the answer is B", "whatever", pattern=r"^Answer: [A-D]$") == 0.0
    assert regex.score("ANSWER: B", "", pattern=r"(?i)answer: b") == 1.0


def test_regex_with_group() -> None:
    """A regex with a group compares what its last match captured."""
    pattern = r"Answer:\s*(\w+)"
    assert regex.score("Answer: A ... no, Answer: B", "B", pattern=pattern) == 1.0
    assert regex.score("Answer: A ... no, Answer: B", "A", pattern=pattern) == 0.0
    assert regex.score("Answer: B", "It follows. Answer: B", pattern=pattern) == 1.0
    assert regex.score("B", "B", pattern=pattern) == 0.0
    assert regex.score(f"Answer: {COMPOSED}", "Answer: caf\u00e9", pattern=pattern) == 1.0


def test_broken_pattern_refused() -> None:
    """A broken pattern is refused."""
    with pytest.raises(ValueError, match="not a regular expression: .* at position 0"):
        regex.check(pattern="(a")


def test_json_valid() -> None:
    for text in ('{"a":1}', " [1] \n", '"\u00e9"', "null", "9" * 5000):
        assert json_valid.score(text, "") == 1.0, text[:10]
    for text in ("", "{'a':1}", '{"a":1} and more', "NaN", "[1,]", "[" * 100_000):
        assert json_valid.score(text, "") == 0.0, text[:10]


def test_json_match_compares_values() -> None:
    truth = '{"a":1,"b":[true,"x"]}'
    answers = {
        '{"b": [true, "x"], "a": 1}': 1.0,
        '{"a":1,"b":[1,"x"]}': 0.0,
        '{"a":1}': 0.0,
        '{"a":1,"b":[true,"x"],"c":null}': 0.0,
        "not json": 0.0,
        "": 0.0,
    }
    assert {a: json_match.score(a, truth) for a in answers} == answers
    assert json_match.score("null", "null") == 1.0
    number = '{"n": [1, -0.0, 0.10, 1e2, 123456789012345678901]}'
    assert json_match.score('{"n":[1.0,0,1e-1,100,123456789012345678901.0]}', number) == 1.0
    assert json_match.score('{"n":[1,0,0.1,100,123456789012345678902]}', number) == 0.0
    assert json_match.score("1", "true") == json_match.score("1", '"1"') == 0.0
    assert json_match.score("1e999999999", "2e999999999") == 0.0
    for answer in ('{"a":1,"a":1}', '{"a":NaN}', '```json\n{"a":1}\n```', 'So: {"a":1}'):
        assert json_match.score(answer, '{"a":1}') == json_valid.score(answer, "") == 0.0
    with pytest.raises(ValueError, match="the same key twice"):
        json_match.score("{}", '{"a":1,"a":2}')
    assert json_match.score('"\\u00e9"', '"\u00e9"') == 1.0
    with pytest.raises(ValueError, match="the reference is not JSON"):
        json_match.score("{}", "{")


def test_json_fields_counts_the_references_fields() -> None:
    truth = '{"name":"Zo\u00eb","order":{"n":1,"paid":true},"tags":["a","b"]}'  # four fields
    answers = {
        truth: 1.0,
        '{"name":"Zo\\u00eb"}': 0.25,
        '{"name":"Zo\u00eb","order":{"n":1,"paid":1}}': 0.5,
        '{"order":{"n":1,"paid":true},"tags":["b","a"],"more":0}': 0.5,
        '{"order":7}': 0.0,
        "[]": 0.0,
        "no": 0.0,
        '{"order":' * 500 + "1" + "}" * 500: 0.0,
    }
    assert {a: json_fields.score(a, truth) for a in answers} == answers
    assert json_fields.score('{"a":{}}', '{"a":{}}') == 1.0
    assert json_fields.score('{"a":1.0,"b":true}', '{"a":1,"b":1}') == 0.5
    for reference in ("{}", "[1]", "{"):
        with pytest.raises(ValueError, match="the reference is not"):
            json_fields.score("{}", reference)


def test_chrf_matches_sacrebleu() -> None:
    """chrF equals sacrebleu's sentence score."""
    assert chrf.score("the cat", "the cat") == 1.0
    assert chrf.score("xyz", "the cat") == 0.0
    assert chrf.score("", "the cat") == 0.0
    # "ab" against "abc": 1-grams precision 1, recall 2/3; 2-grams 1 and 1/2; 3-grams: the answer
    # has none, so its order is left out. Means: precision 1, recall 7/12; beta 2.
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    expected = 5 * precision * recall / (4 * precision + recall)
    assert chrf.score("ab", "abc") == pytest.approx(expected)
    assert chrf.score("東京都", "東京都") == 1.0
    # chrF++: words that are not shared cost
    assert chrf.score("the ca", "the cat", word_order=2) < chrf.score("the ca", "the cat")
    with pytest.raises(ValueError, match="word_order"):
        chrf.check(word_order=-1)


def test_token_f1_is_squads() -> None:
    # "the" is dropped: {cat, sat} against {cat, sat, down}: precision 1, recall 2/3
    assert token_f1.score("The cat sat.", "A cat sat down!") == pytest.approx(0.8)
    assert token_f1.score("cat cat", "cat") == pytest.approx(2 / 3)  # counted as often as it stands
    assert token_f1.score("Paris", "paris") == 1.0
    assert token_f1.score("¿Qué?", "qué") == 1.0
    assert token_f1.score("dog", "cat") == 0.0
    assert token_f1.score("", "cat") == 0.0
    assert token_f1.score("the", "a") == 1.0  # SQuAD: both empty


def test_loss_is_per_supervised_unit() -> None:
    assert loss.score_loss(6.0, 4.0) == 1.5
    assert (loss.INFO.better, loss.INFO.unit) == ("lower", "nats")

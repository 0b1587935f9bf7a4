"""CSV and TSV: dialects, stray quotes, ragged rows, and what spreadsheets and pandas add."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeoff.core.errors import PreflightError
from bakeoff.data.sources.delimited import parse_delimited
from bakeoff.data.sources.files import read_data_file

TEXTS = [f"the {thing} number {i} was bad" for i, thing in enumerate(["lamp", "chair", "desk"] * 8)]
LABELS = ["pos", "neg"] * 12


def read(text: str, tabs: bool = False) -> list[dict[str, str]]:
    rows, _ = parse_delimited("rows", text, tabs)
    return [dict(row) for row in rows]


def notes(text: str, tabs: bool = False) -> str:
    return "\n".join(parse_delimited("rows", text, tabs)[1])


def refused(text: str, tabs: bool = False) -> PreflightError:
    with pytest.raises(PreflightError) as error:
        parse_delimited("rows", text, tabs)
    return error.value


def table(delimiter: str, texts: list[str] = TEXTS) -> str:
    lines = [f"{text}{delimiter}{label}" for text, label in zip(texts, LABELS, strict=True)]
    return "\n".join([f"text{delimiter}label", *lines, ""])


def with_stray(delimiter: str, *at: int) -> str:
    return table(delimiter, [f'"{t}' if i in at else t for i, t in enumerate(TEXTS)])


# --- quotes --------------------------------------------------------------------------------------


def test_tsv_quotes_are_text() -> None:
    """Lines of a TSV that begin with a quote keep it, and no row is lost."""
    text = with_stray("\t", 3, 9)
    rows = read(text, tabs=True)
    assert [row["label"] for row in rows] == LABELS
    assert rows[3]["text"] == f'"{TEXTS[3]}'
    assert "lines 5 and 11" in notes(text, tabs=True)


@pytest.mark.parametrize(
    "cell",
    ['"said" she', '"', '""', '"a" and "b"', 'he said "no"', '"quoted whole"', '"one, two"x'],
)
def test_tsv_with_quoted_words(cell: str) -> None:
    """Quotes of a TSV that is not quoted are part of its texts."""
    rows = read(f"text\tlabel\n{cell}\tpos\nplain, with a comma\tneg\n", tabs=True)
    assert [row["text"] for row in rows] == [cell, "plain, with a comma"]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ('"two\nlines"', "two\nlines"),
        ('"a\ttab"', "a\ttab"),
        ('"say ""no"" to it"', 'say "no" to it'),
        ('"comma, as Excel quotes it"', "comma, as Excel quotes it"),
    ],
)
def test_tsv_that_is_quoted(cell: str, value: str) -> None:
    """A TSV whose quotes a writer set is read without them."""
    rows = read(f"text\tlabel\n{cell}\tpos\nplain\tneg\n", tabs=True)
    assert [row["text"] for row in rows] == [value, "plain"]


def test_tsv_with_all_cells_quoted() -> None:
    assert read('"text"\t"label"\n"a"\t"x"\n', tabs=True) == [{"text": "a", "label": "x"}]


@pytest.mark.parametrize("at", [(4,), (4, 12), (0, 1, 2), (23,)])
def test_csv_stray_quote_refused(at: tuple[int, ...]) -> None:
    """A quote that opens a cell and is not closed is refused with its lines."""
    error = refused(with_stray(",", *at))
    assert error.code == "stray-quote"
    numbers = [str(i + 2) for i in at]
    assert all(number in error.cause for number in numbers)


@pytest.mark.parametrize(
    "cell", ['"He said "no" to me"', '"abc" def', '"ends', '"""three"" then "one']
)
def test_csv_malformed_quotes_refused(cell: str) -> None:
    error = refused(f"text,label\nfine,pos\n{cell},neg\nfine,pos\n")
    assert (error.code, "line 3" in error.cause) == ("stray-quote", True)


def test_csv_two_strays_that_fit() -> None:
    """Two stray quotes that make one legal cell are seen by the rows in it."""
    texts = list(TEXTS)
    texts[4] = f'"{texts[4]}'
    lines = table(",", texts).split("\n")
    fitting = [*lines[:9], lines[9].replace(",", '",'), *lines[10:]]
    error = refused("\n".join(fitting))
    assert error.code == "stray-quote"
    assert "from line 6 to 10" in error.cause
    lines[9] += '"'
    error = refused("\n".join(lines))
    assert (error.code, "line 6" in error.cause) == ("stray-quote", True)


@pytest.mark.parametrize(
    "text",
    [
        "Dear Sir,\nhello, world\nyours, me",
        "a,b\nc,d",
        'she said "no",\nand left, at last',
        "name,age\nAnn,3\nBob,4",
        "\n\nfirst, second\n",
        "crlf,\r\nand, more",
    ],
)
def test_csv_with_multiline_text(text: str) -> None:
    """A legal quoted text of many lines is read, commas and all."""
    rows = [{"text": t, "label": label} for t, label in zip(TEXTS, LABELS, strict=True)]
    rows[5]["text"] = rows[8]["text"] = text
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["text", "label"])
    writer.writeheader()
    writer.writerows(rows)
    assert read(file.getvalue()) == rows


def test_csv_quote_inside_a_bare_cell() -> None:
    """A quote in the middle of a cell that none opens is text, and is said."""
    text = 'text,label\n5" screen,pos\nplain,neg\n'
    assert read(text)[0]["text"] == '5" screen'
    assert "line 2" in notes(text)


def test_backslash_escapes() -> None:
    """A file that escapes quotes with backslashes is read, unless backslashes are text too."""
    text = 'text,label\n"she said \\"great\\", and left",pos\nplain,neg\n'
    assert read(text)[0]["text"] == 'she said "great", and left'
    assert "backslashes" in notes(text)
    assert refused(text.replace("plain", '"C:\\new \\"x\\""')).code == "stray-quote"
    assert read("text,label\nC:\\new,pos\n")[0]["text"] == "C:\\new"


def test_spaces_before_quotes() -> None:
    text = 'text, label\n"a", "b, c"\nd, "e"\n'
    assert read(text) == [{"text": "a", "label": "b, c"}, {"text": "d", "label": "e"}]
    assert "spaces" in notes(text)


# --- delimiters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delimiter", "name"), [(";", "semicolons"), ("|", "bars"), ("\t", "tabs")]
)
def test_delimiter_from_header(delimiter: str, name: str) -> None:
    """The delimiter of a .csv file is found by its header, and said."""
    text = table(delimiter, [f"{t}, 1,5" for t in TEXTS])
    assert [row["label"] for row in read(text)] == LABELS
    assert name in notes(text)


def test_commas_come_first() -> None:
    assert read("a,b;c\n1,2;3\n") == [{"a": "1", "b;c": "2;3"}]
    assert not notes("a,b;c\n1,2;3\n")
    assert read("text\nno comma; here\n") == [{"text": "no comma; here"}]


def test_excel_states_its_delimiter() -> None:
    rows, _ = parse_delimited("rows", "sep=;\r\ntext;label\r\na, b;x\r\n", tabs=False)
    assert rows == [{"text": "a, b", "label": "x"}]
    assert rows[0].place.number == 3


def test_tsv_without_tabs() -> None:
    assert read("text,label\na,x\n", tabs=True) == [{"text": "a", "label": "x"}]
    assert "commas" in notes("text,label\na,x\n", tabs=True)


# --- rows and columns ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("a,b\n1,2\n1\n1,2,3\n", "line 3 has fewer cells", "broken too: line 4"),
        ("a,b\n1,2\n# done\n", "line 3 has fewer cells", "comments"),
        ("# made by me\na,b\n1,2\n", "line 2 has more cells", "comments"),
        ("a,b\n1,2\na,b\n3,4\n", "line 3 repeats the header", "concatenated"),
        ("a,b,a\n1,2,3\n", "'a' more than once", "unique"),
        ("a,b\n1,2\n3", "line 3 has fewer cells", "commas"),
        ("text,label\nbroken\nline,x\n", "line 2 has fewer cells", "quoted"),
    ],
)
def test_ragged_csv_refused(text: str, says: str, hint: str) -> None:
    error = refused(text)
    assert says in error.cause
    assert hint in f"{error.cause} {error.try_}"


def test_tsv_with_line_end_in_text() -> None:
    """A line end inside an unquoted cell of a TSV is refused, not read as two rows."""
    error = refused("text\tlabel\na\tx\nbroken\nline\ty\n", tabs=True)
    assert (error.code, "lines 3" in error.cause or "line 3" in error.cause) == (
        "data-broken",
        True,
    )


def test_line_ends_of_every_kind() -> None:
    for end in ("\n", "\r\n", "\r"):
        assert read(f"a,b{end}1,2{end}{end}3,4") == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_empty_columns_and_cells_of_excel() -> None:
    """Columns, cells and rows that a spreadsheet left empty are left out, and said."""
    text = "text,label,,\nx,pos,,\ny,neg,,,,\n,,,\n"
    assert read(text) == [{"text": "x", "label": "pos"}, {"text": "y", "label": "neg"}]
    said = notes(text)
    assert "columns 3 and 4" in said
    assert "line 4" in said
    assert "after its last column" in said


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_pandas_index_left_out(name: str) -> None:
    text = f"{name},text,label\n0,x,pos\n1,y,neg\n"
    assert read(text) == [{"text": "x", "label": "pos"}, {"text": "y", "label": "neg"}]
    assert "row numbers" in notes(text)


def test_named_column_is_kept() -> None:
    """A column called as pandas calls one is kept if it holds no row numbers."""
    assert read("Unnamed: 0,label\nhello,x\n") == [{"Unnamed: 0": "hello", "label": "x"}]
    assert "without a name" in notes("text,,label\na,b,x\n")


def test_header_only_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n")
    with pytest.raises(PreflightError, match="empty-split"):
        read_data_file(tmp_path / "a.csv")


# --- any table that a writer can write -----------------------------------------------------------

CELLS = st.text(alphabet=st.sampled_from("ab\"',;\t|\n\r \\é"), max_size=6)
TABLES = st.lists(st.tuples(CELLS, CELLS, st.sampled_from("xyz")), min_size=1, max_size=6)


def written(rows: list[tuple[str, str, str]], delimiter: str, quoting: int) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
    writer.writerow(["one", "two", "three"])
    writer.writerows(rows)
    return file.getvalue()


@given(TABLES, st.sampled_from(",;|\t"), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_written_tables_read_back(
    rows: list[tuple[str, str, str]], delimiter: str, quoting: int
) -> None:
    """What Python's csv module writes, minimally or fully quoted, is read back as it was."""
    got = read(written(rows, delimiter, quoting), tabs=delimiter == "\t")
    assert [tuple(row.values()) for row in got] == rows


@given(
    st.lists(
        st.tuples(
            st.text(alphabet=st.sampled_from("ab\"',; \\é"), max_size=8),
            st.text(alphabet=st.sampled_from("ab\"',; \\é"), max_size=8),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_plain_tsv_keeps_every_row(rows: list[tuple[str, str]]) -> None:
    """A TSV without quoting keeps its rows, whatever quotes are in its texts."""
    lines = "".join(f"{text}\t{more}\tx\n" for text, more in rows)
    got = read(f"one\ttwo\tthree\n{lines}", tabs=True)
    assert len(got) == len(rows)

"""Blocks that sections are made of; ``templates/blocks/<kind>.html`` draws each kind.

A section returns blocks and writes no HTML. A block's ``sheet`` names its figures in
``csv_tables.tables``, which the page offers as CSV.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Text:
    """A paragraph; ``tone`` is plain, headline, muted or warning."""

    kind: ClassVar[str] = "text"
    text: str
    tone: str = "plain"


@dataclass(frozen=True)
class Tile:
    """One prominent number with a label below it."""

    number: str
    word: str
    tone: str = "plain"


@dataclass(frozen=True)
class Tiles:
    """A row of tiles."""

    kind: ClassVar[str] = "tiles"
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Fact:
    """A name and its value; ``code`` selects a fixed-width font (hashes, commands)."""

    name: str
    value: str
    code: bool = False


@dataclass(frozen=True)
class Facts:
    """A list of facts."""

    kind: ClassVar[str] = "facts"
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Column:
    """A table column; ``hint`` describes its numbers in one phrase.

    A filterable table can be filtered by the values of a ``facet`` column.
    """

    title: str
    numeric: bool = False
    hint: str | None = None
    facet: bool = False


@dataclass(frozen=True)
class Cell:
    """A table cell; ``sort`` is the number behind the text, ``tone`` a verdict or a status."""

    text: str
    sort: float | None = None
    tone: str | None = None
    long: bool = False


@dataclass(frozen=True)
class TableRow:
    """A table row; a ``pinned`` row stays on top in any sort order."""

    cells: tuple[Cell, ...]
    pinned: bool = False


@dataclass(frozen=True)
class TableBlock:
    """A table that scrolls in its own box; ``folded`` hides it behind its caption.

    A ``filterable`` table has a text filter and a choice for each facet; pinned rows stay visible.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    folded: bool = False
    sortable: bool = False
    filterable: bool = False
    sheet: str | None = None


@dataclass(frozen=True)
class ChartAxis:
    """A chart axis in displayed units; ``tick_text`` holds the label of each of ``ticks``."""

    title: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    ticks: tuple[float, ...] = ()
    tick_text: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """Points or a line; ``role`` selects colour, symbol and dash (defined in ``report.js``)."""

    name: str
    role: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    draw: str = "points"
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    labels: tuple[str, ...] = ()
    hover: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Pane:
    """A y axis and its series; the panes of a chart share their x axis."""

    y: ChartAxis
    series: tuple[Series, ...]


@dataclass(frozen=True)
class PickAxis:
    """An axis that a reader can choose, in its horizontal (``x``) and vertical (``y``) form.

    ``y`` may leave out outliers. ``sign`` is 1 if more is better, else -1.
    """

    key: str
    name: str
    sign: int
    x: ChartAxis
    y: ChartAxis


@dataclass(frozen=True)
class PickPoint:
    """A method on all axes: values (None if not measured), intervals and hover texts.

    ``chances`` are its probabilities of being on the front of the first axis and each other axis.
    """

    title: str
    mark: str
    control: bool
    values: tuple[float | None, ...]
    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]
    texts: tuple[str, ...]
    chances: tuple[float | None, ...]


@dataclass(frozen=True)
class Picker:
    """The data of a chart with selectable axes; ``x`` and ``y`` are the initial choice."""

    axes: tuple[PickAxis, ...]
    points: tuple[PickPoint, ...]
    x: int
    y: int


@dataclass(frozen=True)
class Chart:
    """An interactive chart, drawn by Plotly from the JSON in the page; ``key`` is unique.

    With a ``picker``, the reader can choose other axes.
    """

    kind: ClassVar[str] = "chart"
    key: str
    title: str
    description: str
    x: ChartAxis
    panes: tuple[Pane, ...]
    size: str = "large"
    tone: str | None = None
    picker: Picker | None = None
    sheet: str | None = None


@dataclass(frozen=True)
class Grid:
    """Charts in as many columns as the window has room for."""

    kind: ClassVar[str] = "grid"
    charts: tuple[Chart, ...]
    size: str = "large"
    sheet: str | None = None


@dataclass(frozen=True)
class Tick:
    """A tick of a forest plot: its position (percent of the width) and label."""

    percent: float
    text: str


@dataclass(frozen=True)
class Whisker:
    """An interval in percent of the width; a clipped end lies outside the plot."""

    low: float
    high: float
    point: float
    low_clipped: bool = False
    high_clipped: bool = False


@dataclass(frozen=True)
class ForestRow:
    """One method: its whisker, or the reason why it has none."""

    name: str
    tone: str
    badge: str
    numbers: str
    small: str
    whisker: Whisker | None
    reason: str | None = None


@dataclass(frozen=True)
class Forest:
    """A forest plot, drawn without scripts; positions are percent of the plot's width."""

    kind: ClassVar[str] = "forest"
    label: str
    zero: float
    band_low: float | None
    band_high: float | None
    left: str
    right: str
    ticks: tuple[Tick, ...]
    rows: tuple[ForestRow, ...]
    sheet: str | None = None


@dataclass(frozen=True)
class BarSegment:
    """A segment of a bar, from ``low`` to ``high`` percent of the width."""

    tone: str
    low: float
    high: float


@dataclass(frozen=True)
class BarRow:
    """One method's bar and its numbers as text; without segments, ``numbers`` says why."""

    name: str
    pieces: tuple[BarSegment, ...]
    numbers: str


@dataclass(frozen=True)
class LegendEntry:
    """The meaning of one tone of a bar."""

    tone: str
    word: str


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, drawn without scripts; ``zero`` is the position of their axis.

    A table in the same section has their numbers.
    """

    kind: ClassVar[str] = "bars"
    label: str
    keys: tuple[LegendEntry, ...]
    rows: tuple[BarRow, ...]
    zero: float = 0.0


@dataclass(frozen=True)
class ExamplePrediction:
    """A method's prediction for an item, and its score."""

    title: str
    text: str | None
    score: str


@dataclass(frozen=True)
class ItemExample:
    """An item with two predictions side by side."""

    name: str
    prompt: str | None
    reference: str | None
    left: ExamplePrediction
    right: ExamplePrediction


@dataclass(frozen=True)
class ExampleGroup:
    """Examples under one heading."""

    heading: str
    examples: tuple[ItemExample, ...]


@dataclass(frozen=True)
class Examples:
    """Groups of examples, folded behind a caption."""

    kind: ClassVar[str] = "examples"
    caption: str
    groups: tuple[ExampleGroup, ...]


MOST_ROWS = 1000
"""Rows of a table of trials that the page shows; the CSV below it has all."""


def table_caption(caption: str, n_rows: int) -> str:
    """Return the caption of a table of trials, which says if the page has only its first rows."""
    return caption if n_rows <= MOST_ROWS else f"{caption} (the first {MOST_ROWS:,} of {n_rows:,})"


Block = Text | Tiles | Facts | TableBlock | Chart | Grid | Forest | Bars | Examples


@dataclass(frozen=True)
class SectionView:
    """The content of a section: a lead that explains how to read it, then blocks.

    A view without blocks is left out of the page.
    """

    blocks: tuple[Block, ...] = field(default=())
    lead: str | None = None

    @property
    def charts(self) -> tuple[Chart, ...]:
        """Every chart of the section, including those in grids."""
        charts: list[Chart] = []
        for block in self.blocks:
            if isinstance(block, Chart):
                charts.append(block)
            elif isinstance(block, Grid):
                charts.extend(block.charts)
        return tuple(charts)

"""What a section is made of: a few kinds of block, each drawn by ``templates/blocks/<kind>.html``.

A section computes and returns blocks; it writes no HTML. So a new section is one new file, and
every block looks and behaves the same on every page. A block's ``sheet`` names the figures behind
it, as ``sheets.tables`` gives them: the page offers them as CSV.
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
    """One number that is read at a glance, with the word below it."""

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
    """A name and its value; ``code`` sets it in fixed width (hashes, commands)."""

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
    """A table column; ``hint`` says in one phrase what the numbers are.

    Rows of a filterable table can be chosen by the values of a ``facet`` column.
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
    """A table row; a ``pinned`` row stays on top however the table is sorted."""

    cells: tuple[Cell, ...]
    pinned: bool = False


@dataclass(frozen=True)
class TableBlock:
    """A table that scrolls in its own box; ``folded`` hides it behind its caption.

    A ``filterable`` one gets a field for text and a choice for each facet; pinned rows stay.
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
    """A chart axis in the numbers that people read; ``ticks`` pairs with ``tick_text``."""

    title: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    ticks: tuple[float, ...] = ()
    tick_text: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """Points or a line; ``role`` picks colour, symbol and dash (``report.js`` knows the roles)."""

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
    """A y axis and what is drawn against it; the panes of a chart share their x axis."""

    y: ChartAxis
    series: tuple[Series, ...]


@dataclass(frozen=True)
class PickAxis:
    """An axis that a reader can choose; ``x`` and ``y`` are how it is drawn as either.

    ``y`` may leave out what lies far outside. ``sign`` is 1 where more is better, else -1.
    """

    key: str
    name: str
    sign: int
    x: ChartAxis
    y: ChartAxis


@dataclass(frozen=True)
class PickPoint:
    """A method on all axes: its values, what the mouse is told of each, None where not measured.

    ``chances`` are its probabilities of being on the front of the first axis and each other one.
    """

    title: str
    mark: str
    control: bool
    values: tuple[float | None, ...]
    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]
    says: tuple[str, ...]
    chances: tuple[float | None, ...]


@dataclass(frozen=True)
class Picker:
    """What a chart with axes to choose from is drawn of; ``x`` and ``y`` are the first choice."""

    axes: tuple[PickAxis, ...]
    points: tuple[PickPoint, ...]
    x: int
    y: int


@dataclass(frozen=True)
class Chart:
    """An interactive chart, drawn by Plotly from the JSON in the page; ``key`` is unique.

    With a ``picker`` it is the first of many, and its reader chooses the axes.
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
    """Charts beside each other, as many as the window is wide."""

    kind: ClassVar[str] = "grid"
    charts: tuple[Chart, ...]
    size: str = "large"
    sheet: str | None = None


@dataclass(frozen=True)
class Tick:
    """A tick of a forest plot: where (percent of the width) and what it says."""

    percent: float
    text: str


@dataclass(frozen=True)
class Whisker:
    """An interval in percent of the width; a clipped end goes on beyond the plot."""

    low: float
    high: float
    point: float
    low_clipped: bool = False
    high_clipped: bool = False


@dataclass(frozen=True)
class ForestRow:
    """One method: its whisker, or the reason why there is none."""

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
    """A piece of a bar, from ``low`` to ``high`` percent of the width."""

    tone: str
    low: float
    high: float


@dataclass(frozen=True)
class BarRow:
    """One method's bar and its numbers in words; without pieces ``numbers`` says why."""

    name: str
    pieces: tuple[BarSegment, ...]
    numbers: str


@dataclass(frozen=True)
class LegendEntry:
    """What a tone of a bar means."""

    tone: str
    word: str


@dataclass(frozen=True)
class Bars:
    """Bars below each other, drawn without scripts; ``zero`` is where their axis stands.

    A table beside them has their numbers.
    """

    kind: ClassVar[str] = "bars"
    label: str
    keys: tuple[LegendEntry, ...]
    rows: tuple[BarRow, ...]
    zero: float = 0.0


@dataclass(frozen=True)
class ExamplePrediction:
    """What one method answered to an item, and how that scored."""

    title: str
    text: str | None
    score: str


@dataclass(frozen=True)
class ItemExample:
    """An item with two answers side by side."""

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
    """Groups of examples, folded behind a line."""

    kind: ClassVar[str] = "examples"
    caption: str
    groups: tuple[ExampleGroup, ...]


Block = Text | Tiles | Facts | TableBlock | Chart | Grid | Forest | Bars | Examples


@dataclass(frozen=True)
class SectionView:
    """What a section shows: a lead that says how to read it, then blocks.

    A view without blocks is left out of the page.
    """

    blocks: tuple[Block, ...] = field(default=())
    lead: str | None = None

    @property
    def charts(self) -> tuple[Chart, ...]:
        """Every chart of the section, those in grids included."""
        found: list[Chart] = []
        for block in self.blocks:
            if isinstance(block, Chart):
                found.append(block)
            elif isinstance(block, Grid):
                found.extend(block.charts)
        return tuple(found)

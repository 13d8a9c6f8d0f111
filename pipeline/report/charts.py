"""Charts as data for the templates, which draw them as inline SVG.

x is a percentage of the width and y is in pixels, so a chart gets as wide as the page and its text keeps its size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

ROW_HEIGHT, AXIS_HEIGHT, MARKER_HEIGHT, BARS_HEIGHT = 30, 26, 22, 190
_BAR_SHARE = 0.94
"""Width of a bar as a share of its bin's."""


@dataclass(frozen=True)
class Dot:
    """A value with the ends of its whisker (None without one); `is_highlighted` draws it in the accent colour."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    is_highlighted: bool = False


@dataclass(frozen=True)
class Series:
    """The bars of one kind in a stacked histogram: a count for each bin; `css_class` is "solid", "light" or "dark"."""

    label: str
    css_class: str
    counts: Sequence[int]


@dataclass(frozen=True)
class Marker:
    """A vertical line over a histogram with its name; `low` and `high` span a bar across its top."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Tick:
    """A position on an axis and its label."""

    position: str
    label: str


@dataclass(frozen=True)
class PlottedDot:
    """A row of a dot plot: `whisker` holds the x of both ends, or nothing."""

    label: str
    value: str
    x: str
    y: int
    whisker: tuple[str, ...]
    is_highlighted: bool


@dataclass(frozen=True)
class DotPlot:
    """A row for each dot over an axis, with a dashed line at `reference`; `description` is for screen readers."""

    title: str
    description: str
    height: int
    ticks: list[Tick]
    reference: str
    dots: list[PlottedDot]


@dataclass(frozen=True)
class PlottedBar:
    """A part of a stacked bar."""

    css_class: str
    x: str
    y: str
    width: str
    height: str


@dataclass(frozen=True)
class PlottedMarker:
    """A marker's line at `x`, and its name at `y` on the side with more room."""

    label: str
    x: str
    y: int
    span: tuple[str, ...]
    anchor: str
    shift: int


@dataclass(frozen=True)
class Histogram:
    """Stacked bars of equal bins, markers above them, and a legend (css class, text)."""

    title: str
    description: str
    bottom: int
    count_ticks: list[Tick]
    ticks: list[Tick]
    bars: list[PlottedBar]
    markers: list[PlottedMarker]
    legend: list[tuple[str, str]]


def build_dot_plot(title: str, rows: Sequence[Dot], reference: float) -> DotPlot:
    """A dot-and-whisker plot; its axis spans the data, not zero."""
    values = [reference, *(x for row in rows for x in (row.value, row.low, row.high) if x is not None)]
    low, high = min(values), max(values)
    margin = (high - low) * 0.04 or 0.05
    low, high = low - margin, high + margin

    def at(x: float) -> str:
        return format_svg_percent((x - low) / (high - low))

    dots = [
        PlottedDot(
            row.label,
            f"{row.value:.3f}",
            at(row.value),
            ROW_HEIGHT * number + ROW_HEIGHT // 2,
            () if row.low is None or row.high is None else (at(row.low), at(row.high)),
            row.is_highlighted,
        )
        for number, row in enumerate(rows)
    ]
    description = f"{title}: " + "; ".join(f"{row.label} {row.value:.3f}" for row in rows)
    return DotPlot(title, description, ROW_HEIGHT * len(rows), _build_axis(low, high), at(reference), dots)


def build_histogram(
    title: str, low: float, high: float, series: Sequence[Series], markers: Sequence[Marker]
) -> Histogram:
    """Stacked bars of equal bins from `low` to `high`; series without a count are left out of the legend."""
    totals = [sum(counts) for counts in zip(*(group.counts for group in series), strict=True)]
    max_count = max(*totals, 1)
    bottom = MARKER_HEIGHT * len(markers) + 6 + BARS_HEIGHT

    def at(x: float) -> str:
        return format_svg_percent((x - low) / (high - low))

    base = [0] * len(totals)
    bars = []
    for group in series:
        for bin_index, count in enumerate(group.counts):
            if count:
                height = BARS_HEIGHT * count / max_count
                y = bottom - BARS_HEIGHT * base[bin_index] / max_count - height
                x, width = format_svg_percent(bin_index / len(totals)), format_svg_percent(_BAR_SHARE / len(totals))
                bars.append(PlottedBar(group.css_class, x, f"{y:.1f}", width, f"{height:.1f}"))
                base[bin_index] += count
    is_right = {marker: marker.value > (low + high) / 2 for marker in markers}
    # each name is in a row beside its line; in this order no line crosses the name of a later marker
    ordered = sorted(markers, key=lambda marker: marker.value, reverse=all(is_right.values()))
    plotted = [
        PlottedMarker(
            marker.label,
            at(marker.value),
            MARKER_HEIGHT * number + 12,
            () if marker.low is None or marker.high is None else (at(marker.low), at(marker.high)),
            *(("end", -7) if is_right[marker] else ("start", 7)),
        )
        for number, marker in enumerate(ordered)
    ]
    count_ticks = [
        Tick(f"{bottom - BARS_HEIGHT * count / max_count:.1f}", f"{count:,.0f}")
        for count in compute_ticks(0, max_count, 3)
        if count and count == int(count)
    ]
    legend = [(group.css_class, f"{group.label} {sum(group.counts):,}") for group in series if sum(group.counts)]
    description = f"{title}: " + "; ".join([*(text for _, text in legend), *(marker.label for marker in markers)])
    return Histogram(title, description, bottom, count_ticks, _build_axis(low, high), bars, plotted, legend)


def compute_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    """About `max_ticks` round numbers from `low` to `high`, in steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / max_ticks))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= max_ticks)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def format_svg_percent(share: float) -> str:
    """0.125 -> "12.5%", with three digits at most."""
    return f"{100 * share:.3f}".rstrip("0").rstrip(".") + "%"


def _build_axis(low: float, high: float) -> list[Tick]:
    return [Tick(format_svg_percent((tick - low) / (high - low)), f"{tick:g}") for tick in compute_ticks(low, high, 5)]

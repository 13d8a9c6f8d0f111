"""Charts as inline SVG: x in percent and y in pixels, so that they stretch with the page while their text does not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.html import Html, escape_html


@dataclass(frozen=True)
class Dot:
    """A value with the ends of its whisker (None: it has none); `is_highlighted` draws it in the accent colour."""

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


_ROW_HEIGHT, _AXIS_HEIGHT, _MARKER_HEIGHT = 30, 26, 22


def render_dot_plot(title: str, rows: Sequence[Dot], reference: float) -> Html:
    """A dot-and-whisker plot, a row each, with a dashed line at `reference`; the axis spans the data, not zero."""
    low, high = _compute_axis_range(
        [reference, *(x for row in rows for x in (row.value, row.low, row.high) if x is not None)]
    )
    height = _ROW_HEIGHT * len(rows)

    def at(x: float) -> str:
        return _format_svg_percent((x - low) / (high - low))

    plot = [_render_axis(low, high, height)]
    plot.append(f'<line class="mark" x1="{at(reference)}" x2="{at(reference)}" y1="2" y2="{height}" {_DASHED_STROKE}/>')
    names = []
    for number, row in enumerate(rows):
        y = _ROW_HEIGHT * number + _ROW_HEIGHT // 2
        css = " ours" if row.is_highlighted else ""
        if row.low is not None and row.high is not None:
            plot.append(f'<line class="whisker{css}" x1="{at(row.low)}" x2="{at(row.high)}" y1="{y}" y2="{y}"/>')
            plot += [
                f'<line class="whisker{css}" x1="{at(end)}" x2="{at(end)}" y1="{y - 4}" y2="{y + 4}"/>'
                for end in (row.low, row.high)
            ]
        plot.append(f'<circle class="dot{css}" cx="{at(row.value)}" cy="{y}" r="5.5"/>')
        names.append(f'<text class="{css.strip()}" x="0" y="{y + 4}">{escape_html(row.label)}</text>')
        names.append(f'<text class="{css.strip()}" x="100%" y="{y + 4}" text-anchor="end">{row.value:.3f}</text>')
    inner = "\n".join(['<svg x="31%" width="56%" y="0" overflow="visible">', *plot, "</svg>"])
    description = "; ".join(f"{row.label} {row.value:.3f}" for row in rows)
    return _render_figure(title, description, height + _AXIS_HEIGHT, [*names, inner])


def render_histogram(title: str, low: float, high: float, series: Sequence[Series], markers: Sequence[Marker]) -> Html:
    """Stacked bars of equal bins from `low` to `high`, with markers above them, and a legend."""
    top, height = _MARKER_HEIGHT * len(markers) + 6, 190
    totals = [sum(counts) for counts in zip(*(one.counts for one in series), strict=True)]
    max_count = max(*totals, 1)
    bottom = top + height

    def at(x: float) -> str:
        return _format_svg_percent((x - low) / (high - low))

    out = []
    for count in [tick for tick in compute_ticks(0, max_count, 3) if tick and tick == int(tick)]:
        y = bottom - height * count / max_count
        out.append(f'<line class="rule" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick" x="0" y="{y - 3:.1f}">{count:,.0f}</text>')
    base = [0] * len(totals)
    for one in series:
        for place, count in enumerate(one.counts):
            if count:
                size = height * count / max_count
                y = bottom - height * base[place] / max_count - size
                x, width = _format_svg_percent(place / len(totals)), _format_svg_percent(0.94 / len(totals))
                out.append(f'<rect class="{one.css_class}" x="{x}" y="{y:.1f}" width="{width}" height="{size:.1f}"/>')
                base[place] += count
    names = []
    leftward = {marker: marker.value > (low + high) / 2 for marker in markers}
    # names stand beside their lines, a row each; in this order no line runs through the name of a later one
    for number, marker in enumerate(sorted(markers, key=lambda m: m.value, reverse=all(leftward.values()))):
        y = _MARKER_HEIGHT * number + 12
        side, shift = ("end", -7) if leftward[marker] else ("start", 7)
        x = at(marker.value)
        out.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{y - 8}" y2="{bottom}"/>')
        if marker.low is not None and marker.high is not None:
            out.append(f'<line class="mark" x1="{at(marker.low)}" x2="{at(marker.high)}" y1="{y + 9}" y2="{y + 9}"/>')
        names.append(
            f'<text class="halo" x="{x}" dx="{shift}" y="{y + 2}" text-anchor="{side}">'
            f"{escape_html(marker.label)}</text>"
        )
    out += [_render_axis(low, high, bottom), *names]
    shown = [one for one in series if sum(one.counts)]
    description = "; ".join(
        [*(f"{one.label} {sum(one.counts):,}" for one in shown), *(marker.label for marker in markers)]
    )
    swatch = '<svg width="11" height="11" aria-hidden="true"><rect class="{}" width="11" height="11"/></svg>'
    legend = [
        f"<span>{swatch.format(one.css_class)}{escape_html(one.label)} {sum(one.counts):,}</span>" for one in shown
    ]
    return _render_figure(title, description, bottom + _AXIS_HEIGHT, out, f'<p class="legend">{" ".join(legend)}</p>')


def render_bar(share: float) -> Html:
    """A bar of `share` (0 to 1) of the width that it is given."""
    rect = f'<rect class="light" width="{_format_svg_percent(share)}" height="9"/>'
    return Html(f'<svg width="100%" height="9" aria-hidden="true">{rect}</svg>')


def compute_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    """Round numbers from `low` to `high`, at most about that many: steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / max_ticks))
    step = next(power * by for by in (1, 2, 5, 10) if (high - low) / (power * by) <= max_ticks)
    return [round(place * step, 10) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


_DASHED_STROKE = 'stroke-dasharray="3 3"'


def _compute_axis_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or 0.05
    return low - room, high + room


def _render_axis(low: float, high: float, y: int) -> str:
    out = [f'<line class="rule" x1="0" x2="100%" y1="{y}" y2="{y}"/>']
    for tick in compute_ticks(low, high, 5):
        x = _format_svg_percent((tick - low) / (high - low))
        out.append(f'<line class="rule" x1="{x}" x2="{x}" y1="{y}" y2="{y + 4}"/>')
        out.append(f'<text class="tick" x="{x}" y="{y + 18}" text-anchor="middle">{tick:g}</text>')
    return "\n".join(out)


def _format_svg_percent(share: float) -> str:
    return f"{100 * share:.3f}".rstrip("0").rstrip(".") + "%"


def _render_figure(title: str, description: str, height: int, parts: Sequence[str], legend: str = "") -> Html:
    opening = f'<svg width="100%" height="{height}" role="img" aria-label="{escape_html(f"{title}: {description}")}">'
    return Html(
        "\n".join(
            [
                "<figure>",
                f"<figcaption>{escape_html(title)}</figcaption>",
                opening,
                *parts,
                "</svg>",
                legend,
                "</figure>",
            ]
        )
    )

"""HTML by hand: escaping, tables, and the frame with its style. Whatever comes from data goes through `escape_html`."""

import html
import re
from collections.abc import Iterable, Sequence

MAX_TEXT_CHARS = 240
"""Characters of a text that a page shows."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")


class Html(str):
    """Markup that is safe to place in a page; any other string is text and gets escaped."""

    __slots__ = ()


def escape_html(value: object) -> Html:
    """`threshold` as markup: text is escaped, also for attributes; characters that HTML forbids become U+FFFD."""
    return value if isinstance(value, Html) else Html(html.escape(_UNPRINTABLE.sub("\ufffd", str(value))))


def join_lines(parts: Iterable[str]) -> Html:
    """Pieces of markup, one a line; plain strings are escaped."""
    return Html("\n".join(escape_html(part) for part in parts))


def render_text(text: str, tag: str = "p", css_class: str = "text") -> Html:
    """Text of unknown language in its own direction, white space folded, cut to `MAX_TEXT_CHARS` characters."""
    return Html(f'<{tag} class="{css_class}" dir="auto">{escape_html(truncate_text(text))}</{tag}>')


def truncate_text(text: str) -> str:
    """The first `MAX_TEXT_CHARS` characters of a text with its white space folded, up to a word's end where one is
    near."""
    folded = " ".join(text.split())
    if len(folded) <= MAX_TEXT_CHARS:
        return folded
    kept, _, broken = folded[:MAX_TEXT_CHARS].rpartition(" ")
    return (kept if len(broken) < MAX_TEXT_CHARS // 8 else folded[: MAX_TEXT_CHARS - 1]) + "…"


def render_section(title: str, *parts: str) -> Html:
    """A section under its heading."""
    return join_lines([Html("<section>"), Html(f"<h2>{escape_html(title)}</h2>"), *parts, Html("</section>")])


def render_note(*sentences: str) -> Html:
    """A paragraph that says how to read what follows it."""
    return Html(f'<p class="note">{" ".join(map(escape_html, sentences))}</p>')


def format_count(n: int, noun: str) -> str:
    """`1 question`, `1,431 questions`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def render_table(
    header: Sequence[str], bodies: Sequence[tuple[str, Sequence[Sequence[str]]]], css_class: str = ""
) -> Html:
    """A table of groups of rows, each under its name (none where that is empty); it scrolls where it is too wide.

    The first cell of a row names the row. A cell whose text is a number stands right-aligned.
    """
    out = [f'<div class="scroll"><table class="{escape_html(css_class)}">']
    if header:
        numeric = [all(_is_number_text(row[i]) for _, rows in bodies for row in rows) for i in range(len(header))]
        cells = (
            f'<th{_format_number_class(right)} scope="col">{escape_html(name)}</th>'
            for name, right in zip(header, numeric, strict=True)
        )
        out.append(f"<thead><tr>{''.join(cells)}</tr></thead>")
    for name, rows in bodies:
        out.append("<tbody>")
        if name:
            width = len(rows[0]) if rows else 1
            out.append(f'<tr class="group"><th scope="rowgroup" colspan="{width}">{escape_html(name)}</th></tr>')
        for first, *rest in rows:
            cells = (f"<td{_format_number_class(_is_number_text(cell))}>{escape_html(cell)}</td>" for cell in rest)
            out.append(f'<tr><th scope="row">{escape_html(first)}</th>{"".join(cells)}</tr>')
        out.append("</tbody>")
    return Html("\n".join([*out, "</table></div>"]))


def _format_number_class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _is_number_text(cell: str) -> bool:
    return not isinstance(cell, Html) and bool(re.fullmatch(r"<?[+−-]?[\d,]*\.?\d+%?", cell))


def render_html_page(title: str, body: str) -> str:
    """A whole page: it loads nothing, and its policy lets nothing in a text run or load either."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape_html(title)}</title>
<style>{STYLESHEET}</style>
</head>
<body>
<main>
{escape_html(body)}
</main>
</body>
</html>
"""


STYLESHEET = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --ink: #1c1e22; --muted: #5a606b; --rule: #dfdfda; --grey: #737a86; --soft: #c3c7cd;
  --accent: #0a6a73;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #16181b; --ink: #e8e9eb; --muted: #a5abb5; --rule: #34383e; --grey: #98a0ac; --soft: #565d68;
    --accent: #55c5cc;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 46rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.55rem, 5vw, 2.1rem); line-height: 1.2; letter-spacing: -.015em; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; letter-spacing: -0.01em; margin: 0 0 .4rem; }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
section { margin-top: 3.5rem; padding-top: 1.5rem; border-top: 1px solid var(--rule); }
p { margin: 0 0 .75rem; }
.kicker { color: var(--muted); font-size: .875rem; margin-bottom: .5rem; }
.note { color: var(--muted); max-width: 40rem; }
.warning { border-left: 3px solid var(--ink); padding-left: .75rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; overflow-wrap: normal; }
table, svg text, .score { font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: baseline; padding: .3rem .75rem .3rem 0; }
tr { border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 400; }
thead th { color: var(--muted); font-size: .8125rem; }
.group th { font-weight: 600; padding-top: 1.1rem; }
.number { text-align: right; white-space: nowrap; }
.ours, .ours .big { color: var(--accent); font-weight: 600; }
.headline tr { border: 0; }
.headline tbody th, .headline td { padding-bottom: .9rem; }
.headline .big { display: block; font-size: clamp(1.5rem, 7vw, 2.4rem); font-weight: 600; line-height: 1.15; }
.headline .small { display: inline-block; white-space: nowrap; font-size: .8rem; color: var(--muted); }
.why { color: var(--muted); font-size: .8125rem; }
.funnel th { width: 48%; }
.funnel td:last-child { width: 36%; }
.in { padding-left: 1.25rem; display: inline-block; color: var(--muted); }
figure { margin: 1.25rem 0 1.5rem; }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .25rem; }
svg { display: block; overflow: visible; }
svg text { font-size: 12.5px; fill: var(--ink); }
svg .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
svg .tick { fill: var(--muted); font-size: 11.5px; }
svg line, svg path { stroke: var(--grey); }
svg .rule { stroke: var(--rule); }
svg .mark { stroke: var(--ink); stroke-width: 1.5; }
svg .whisker { stroke-width: 2; }
svg .dot, svg .solid { fill: var(--grey); }
svg .light { fill: var(--soft); }
svg .dark { fill: var(--ink); }
svg .ours { fill: var(--accent); stroke: var(--accent); }
svg text.ours { stroke: none; }
.legend { font-size: .8125rem; color: var(--muted); }
.legend svg { display: inline-block; vertical-align: -1px; margin-right: .4rem; }
.legend span { margin-right: 1.25rem; white-space: nowrap; }
article { margin-top: 2.25rem; }
article h3 { font-size: 1.05rem; margin: 0 0 .1rem; line-height: 1.4; }
article h4 { font-size: .8125rem; font-weight: 600; color: var(--muted); margin: 1rem 0 .3rem; }
code { font: .8125rem ui-monospace, "SF Mono", Menlo, Consolas, monospace; color: var(--muted); }
ol { list-style: none; margin: 0; padding: 0; }
li { display: grid; grid-template-columns: 3.6rem minmax(0, 1fr); padding: .35rem 0; }
li { font-size: .9rem; line-height: 1.45; }
li p { margin: 0; }
.stages td:last-child { color: var(--muted); }
@media (max-width: 34rem) {
  main { padding-top: 2rem; }
  .headline tr { display: grid; grid-template-columns: repeat(3, 1fr); }
  .headline thead th:first-child { display: none; }
  .headline tbody th { grid-column: 1 / -1; padding-bottom: 0; color: var(--muted); }
  th .why { display: block; }
  .scroll tbody tr:not(.group) th { position: sticky; left: 0; background: var(--paper); }
}
@media print {
  :root { --paper: #fff; }
  main { max-width: none; padding: 0; }
  section { margin-top: 2rem; padding-top: 1rem; }
  h2, h3, h4, code, figcaption, .note { break-after: avoid; }
  p, figure, tr, li { break-inside: avoid; }
  .scroll { overflow: visible; }
}
"""

"""The report's templates: every text that they show is escaped, and holds no character that HTML forbids."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import charts

MAX_TEXT_CHARS = 240
"""Characters of a text that a page shows."""
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")


@cache
def load_templates() -> Environment:
    """The templates of this folder, with their filters."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_replace_forbidden,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.globals["AXIS_HEIGHT"] = charts.AXIS_HEIGHT
    templates.filters |= {
        "shorten": shorten,
        "count": format_count,
        "thousands": lambda number: f"{number:,}",
        "percent": lambda share, digits=1: f"{share:.{digits}%}",
        "svg_percent": charts.format_svg_percent,
    }
    return templates


def render_template(name: str, **values: Any) -> str:
    """A template of this folder with these values."""
    return load_templates().get_template(name).render(**values)


def shorten(text: str) -> str:
    """The first `MAX_TEXT_CHARS` characters of a text with its white space folded, up to the end of a word if one is
    near."""
    folded = " ".join(text.split())
    if len(folded) <= MAX_TEXT_CHARS:
        return folded
    kept, _, broken = folded[:MAX_TEXT_CHARS].rpartition(" ")
    return (kept if len(broken) < MAX_TEXT_CHARS // 8 else folded[: MAX_TEXT_CHARS - 1]) + "…"


def format_count(number: int, singular: str, plural: str) -> str:
    """1 -> "1 query"; 1431 -> "1,431 queries"."""
    return f"{number:,} {singular if number == 1 else plural}"


def _replace_forbidden(value: Any) -> Any:
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return _FORBIDDEN.sub("\ufffd", value) if is_text else value

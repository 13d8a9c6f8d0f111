"""The commented prep.toml that `prep init` writes: every key, its meaning and its default."""

import json
import textwrap
from typing import Any

from pydantic.fields import FieldInfo

from pipeline.workflow.config import list_section_fields

_HEADER = """# prep.toml: the settings of `prep`. Name your tables under [pairs]; all else has a default.
#
# A line "#key = value" holds the default: take away its # to change the value. A line "##key = ..." is a setting that
# has no value: take away both # and write one. Relative paths are relative to this file. `--set section.key=value`
# changes a setting for one command.
"""


def render_commented_toml() -> str:
    """A prep.toml in which every key is commented out."""
    lines = [_HEADER]
    for section, fields in list_section_fields().items():
        lines.append(f"[{section}]")
        for name, field in fields.items():
            lines += [f"# {line}" for line in textwrap.wrap(field.description or "", 110)]
            lines += [_render_setting(name, field), ""]
    return "\n".join(lines)


def _render_setting(name: str, field: FieldInfo) -> str:
    if field.default is None:
        return f"##{name} = {'...' if 'str' not in str(field.annotation) else chr(34) + '...' + chr(34)}"
    return f"#{name} = {_format_toml_value(field.default)}"


def _format_toml_value(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)

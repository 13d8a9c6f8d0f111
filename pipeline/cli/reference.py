"""docs/configuration.md, written from the settings and the commands themselves: `python -m pipeline.cli.reference`."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from pipeline.cli.main import prep
from pipeline.workflow.config import list_section_fields
from pipeline.workflow.graph import STAGES
from pipeline.workflow.stage import Store

HEADER = """# Configuration: every setting and every option

For: you look for a setting, or for what an option does. This page is written by `python -m pipeline.cli.reference`.

Settings come from `prep.toml` (`prep init` writes one with every key), then from options. A key with dashes is an
option of the command that uses it; `--set section.key=value` sets any key. Relative paths in `prep.toml` are relative
to that file. Without a `prep.toml` the workspace remembers the options of each command for those after it.
An old `prep.toml` is answered with the new names of its keys. An option under its old name still counts, and a line
names the new one.
"""


def write_reference() -> str:
    """The page as Markdown: one table for each section of prep.toml, then one for each command."""
    lines = [HEADER]
    for section, fields in list_section_fields().items():
        lines += [f"## [{section}]", "", "| key | default | meaning |", "|---|---|---|"]
        for name, field in fields.items():
            lines.append(
                f"| `{name}` | {_format_json_default(field.default)} | {_escape_cell(field.description or '')} |"
            )
        lines.append("")
    lines += ["## Commands", ""]
    for path, command in iter_commands(prep, "prep"):
        lines += [f"### {path}", "", _first_sentence(command), "", "| option | meaning |", "|---|---|"]
        for option in iter_options(command, path):
            names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
            lines.append(f"| {names} | {_escape_cell(option.help or '')} |")
        lines.append("")
    return "\n".join(lines)


def write_steps() -> str:
    """The steps as a Markdown table, for docs/design.md: `python -m pipeline.cli.reference steps`."""
    lines = ["| step | reads | writes | keeps beside it | code |", "|---|---|---|---|---|"]
    for stage in STAGES:
        reads: dict[str, list[str]] = {}
        for path in (*stage.inputs, *stage.optional_inputs, *stage.published_inputs.values()):
            step, name = path.split("/")
            reads.setdefault(step, []).append(name.removesuffix(".parquet"))
        inputs = "; ".join(f"{step}: {', '.join(dict.fromkeys(names))}" for step, names in reads.items())
        stores = ", ".join(store.value for store in Store if store in stage.writes)
        outputs = ", ".join(name.removesuffix(".parquet") for name in stage.outputs)
        lines.append(f"| {stage.name} | {inputs or 'tables'} | {outputs} | {stores} | {stage.module} |")
    return "\n".join(lines) + "\n"


def iter_commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command under `group` that is no group itself, with its full name."""
    for name in group.list_commands(click.Context(group)):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from iter_commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def iter_options(command: click.Command, path: str) -> Iterator[click.Option]:
    """The options of a command, --help left out."""
    for parameter in command.get_params(click.Context(command, info_name=path)):
        if isinstance(parameter, click.Option) and "--help" not in parameter.opts:
            yield parameter


def _format_json_default(value: Any) -> str:
    if value in (None, "", ()):
        return ""
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)}`"


def _first_sentence(command: click.Command) -> str:
    return " ".join((command.help or "").split("\n\n")[0].split())


def _escape_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    click.echo(write_steps() if sys.argv[1:] == ["steps"] else write_reference(), nl=False)

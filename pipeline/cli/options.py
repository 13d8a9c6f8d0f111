"""Flags made from a section's parameters, so that a key of prep.toml and its flag can never differ."""

import types
import typing
from collections.abc import Sequence
from typing import Any

import click
from pydantic.fields import FieldInfo

from pipeline.workflow.config import list_section_fields


def make_section_options(sections: Sequence[str]) -> list[tuple[str, click.Option]]:
    """One option for each key of these sections of prep.toml, in their order, each with its section."""
    fields = list_section_fields()
    return [(section, make_option(name, field)) for section in sections for name, field in fields[section].items()]


def make_option(name: str, field: FieldInfo) -> click.Option:
    """The option of one parameter. Its click default is None, so that only what was given overrides prep.toml.

    A tuple of any length becomes a repeatable flag, a tuple of fixed length one flag with that many values.
    """
    kind, arguments = _unwrap_optional(field.annotation)
    flag_name = name.replace("_", "-")
    settings: dict[str, Any] = {
        "default": None,
        "help": f"{field.description} {_format_default(field.default)}".strip(),
    }
    if kind is bool:
        return click.Option([f"--{flag_name}/--no-{flag_name}", name], **settings)
    if kind is tuple and arguments[-1] is Ellipsis:
        return click.Option([f"--{flag_name}", name], type=arguments[0], multiple=True, **settings)
    if kind is tuple:
        return click.Option([f"--{flag_name}", name], type=tuple(arguments), **settings)
    if kind is typing.Literal:
        return click.Option([f"--{flag_name}", name], type=click.Choice([str(a) for a in arguments]), **settings)
    return click.Option([f"--{flag_name}", name], type=kind, **settings)


def _unwrap_optional(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """An annotation without its `| None`, as (origin or class, arguments)."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [argument for argument in typing.get_args(annotation) if argument is not type(None)]
        return _unwrap_optional(inner)
    return origin or annotation, typing.get_args(annotation)


def _format_default(default: Any) -> str:
    if default is None or default == () or default == "":
        return ""
    if isinstance(default, tuple):
        default = " ".join(str(item) for item in default)
    return f"[default: {str(default).lower() if isinstance(default, bool) else default}]"

"""Flags made from a section's parameters, so that a key of prep.toml and its flag can never differ."""

import types
import typing
from collections.abc import Sequence
from typing import Any

import click
from pydantic.fields import FieldInfo

from pipeline.workflow.config import list_section_fields
from stages.core.params import RUN_SECTION, has_mark


class SettingOption(click.Option):
    """The option of a setting."""

    is_advanced = False
    """Whether the help shows it under "Advanced"."""


def make_setting_options(sections: Sequence[str], run_keys: Sequence[str]) -> list[tuple[str, SettingOption]]:
    """One option for each key of these sections of prep.toml that may be a flag, and for `run_keys` of [run], in their
    order, each with its section."""
    fields = list_section_fields()
    found = [(section, name, field) for section in sections for name, field in fields[section].items()]
    found += [(RUN_SECTION, name, fields[RUN_SECTION][name]) for name in run_keys]
    return [(section, make_option(name, field)) for section, name, field in found if not has_mark(field, "no_flag")]


def make_option(name: str, field: FieldInfo) -> SettingOption:
    """The option of one parameter. Its click default is None, so that only what was given overrides prep.toml.

    A tuple of any length becomes a repeatable flag, a tuple of fixed length one flag with that many values.
    """
    kind, arguments = _unwrap_optional(field.annotation)
    flag_name = name.replace("_", "-")
    settings: dict[str, Any] = {
        "default": None,
        "help": f"{field.description} {_format_default(field.default)}".strip(),
    }
    names = [f"--{flag_name}", name]
    if kind is bool:
        names = [f"--{flag_name}/--no-{flag_name}", name]
    elif kind is tuple and arguments[-1] is Ellipsis:
        settings |= {"type": arguments[0], "multiple": True}
    elif kind is tuple:
        settings |= {"type": tuple(arguments)}
    elif kind is typing.Literal:
        settings |= {"type": click.Choice([str(a) for a in arguments])}
    else:
        settings |= {"type": kind}
    option = SettingOption(names, **settings)
    option.is_advanced = has_mark(field, "advanced")
    return option


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

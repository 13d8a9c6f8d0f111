"""Flags made from a section's parameters, so that a key of prep.toml and its flag can never differ."""

import types
import typing
from typing import Any

import click
from pydantic.fields import FieldInfo

from pipeline.workflow.config import section_fields, section_models


def section_flags(section: str) -> list[click.Option]:
    """One option for each key of a section of prep.toml, in pipeline order."""
    return [flag(name, field) for name, field in section_fields(section_models()[section]).items()]


def flag(name: str, field: FieldInfo) -> click.Option:
    """The option of one parameter. Its click default is None, so that only what was given overrides prep.toml.

    A tuple of any length becomes a repeatable flag, a tuple of fixed length one flag with that many values.
    """
    kind, arguments = _kind(field.annotation)
    dashed = name.replace("_", "-")
    settings: dict[str, Any] = {"default": None, "help": f"{field.description} {_shown_default(field.default)}".strip()}
    if kind is bool:
        return click.Option([f"--{dashed}/--no-{dashed}", name], **settings)
    if kind is tuple and arguments[-1] is Ellipsis:
        return click.Option([f"--{dashed}", name], type=arguments[0], multiple=True, **settings)
    if kind is tuple:
        return click.Option([f"--{dashed}", name], type=tuple(arguments), **settings)
    if kind is typing.Literal:
        return click.Option([f"--{dashed}", name], type=click.Choice([str(a) for a in arguments]), **settings)
    return click.Option([f"--{dashed}", name], type=kind, **settings)


def _kind(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """An annotation without its `| None`, as (origin or class, arguments)."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [argument for argument in typing.get_args(annotation) if argument is not type(None)]
        return _kind(inner)
    return origin or annotation, typing.get_args(annotation)


def _shown_default(default: Any) -> str:
    if default is None or default == () or default == "":
        return ""
    if isinstance(default, tuple):
        default = " ".join(str(item) for item in default)
    return f"[default: {str(default).lower() if isinstance(default, bool) else default}]"

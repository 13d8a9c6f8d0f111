"""The base of every stage's parameters: the source of options, prep.toml keys and help; and the fields of [run]."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from stages.core.device import Device


class BaseParams(BaseModel):
    """Parameters of one stage. A field's name is its key in prep.toml and, with dashes, its flag."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _blank_to_none(cls, given: Any) -> Any:
        """An empty string leaves a number unset; for a text, the stage defines its meaning."""
        if not isinstance(given, dict):
            return given
        numbers = {name for name, field in cls.model_fields.items() if field.annotation in (int | None, float | None)}
        return {name: None if value == "" and name in numbers else value for name, value in given.items()}

    @classmethod
    def field_sections(cls, own_section: str) -> dict[str, str]:
        """Field -> the section of prep.toml that holds it; `own_section` is the stage's."""
        marks_by_field = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return {
            name: str(extra.get("section") or own_section) if isinstance(extra, dict) else own_section
            for name, extra in marks_by_field.items()
        }

    @classmethod
    def fields_with_mark(cls, mark: str) -> set[str]:
        """The names of the fields that carry a mark of `option`: "path", "model" or "unkeyed"."""
        return {name for name, field in cls.model_fields.items() if has_mark(field, mark)}


def has_mark(field: FieldInfo, mark: str) -> bool:
    """Whether `option` gave a field this mark."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get(mark))


def option(
    default: Any,
    help_text: str,
    *,
    is_path: bool = False,
    is_model: bool = False,
    section: str = "",
    exclude_from_key: bool = False,
    advanced: bool = False,
    flag: bool = True,
    **constraints: Any,
) -> Any:
    """Declare a parameter: its default, its help text (shown by --help and in prep.toml) and pydantic checks.

    `is_path`: relative paths in prep.toml are relative to that file. `is_model`: the same if such a folder exists, else
    the value is the name of a model. `section`: the section of prep.toml, if it is not that of the stage.
    `exclude_from_key`: the value does not enter the artifact's key, because it does not change the result or because
    the content that it names enters the key instead.
    """
    sentence = f"{help_text.rstrip('.')}."
    marks: dict[str, Any] = {"path": is_path, "model": is_model, "unkeyed": exclude_from_key, "section": section}
    marks |= {"advanced": advanced, "no_flag": not flag}
    return Field(default, description=sentence, json_schema_extra=marks, **constraints)


RUN_SECTION = "run"


def seed_option(*, exclude_from_key: bool = False) -> Any:
    """The field `seed` of a stage with random choices."""
    return option(
        42,
        "Seed of all random choices except the split.",
        advanced=True,
        section=RUN_SECTION,
        exclude_from_key=exclude_from_key,
        ge=0,
        lt=2**32,
    )


def device_option() -> Any:
    """The field `device` of a stage that computes with torch. It never enters a key."""
    return option(
        "auto",
        "Device for models and search: cpu, cuda, cuda:1 or mps. auto takes a GPU if there is one.",
        advanced=True,
        section=RUN_SECTION,
        exclude_from_key=True,
    )


def dtype_option(*, exclude_from_key: bool = False) -> Any:
    """The field `dtype` of a stage that multiplies matrices."""
    return option(
        "auto",
        "Number format of matrix products. auto takes bfloat16 if the device is fast at it; only the "
        "encoder takes float16.",
        advanced=True,
        section=RUN_SECTION,
        exclude_from_key=exclude_from_key,
    )


class RunParams(BaseParams):
    """The keys of [run]."""

    seed: int = seed_option()
    device: Device = device_option()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = dtype_option()

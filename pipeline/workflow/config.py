"""Settings: prep.toml, then flags, checked into each stage's Params; and the commented prep.toml of `prep init`."""

import difflib
import json
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError, field_validator
from pydantic.fields import FieldInfo

from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.graph import STAGES
from pipeline.workflow.option_dependencies import IgnoredOption, find_ignored_options
from pipeline.workflow.remote_files import is_url, redact_url
from stages.core.errors import InputError
from stages.core.files import write_durably
from stages.core.params import BaseParams, option

REMEMBERED_LABEL = "remembered setting"
_INPUT_KEYS = {"tables", "sql", "beir"}
ParamsT = TypeVar("ParamsT", bound=BaseParams)
Sections = dict[str, dict[str, Any]]


class RefreshParams(BaseParams):
    """What a refresh keeps; how it decides stands in the gate's parameters."""

    keep: int = option(3, "publications to keep, the current one included", ge=1)
    publish_to: str | None = option(
        None,
        "a URL (s3://bucket/prep, gs://, abfs://, file:///shared/prep) where each publication is copied to, under "
        "published/; current.json there names the newest, and is written last; older ones stay",
    )

    @field_validator("publish_to")
    @classmethod
    def _validate_url(cls, given: str | None) -> str | None:
        if given and not is_url(given):
            raise ValueError("this is no URL such as s3://bucket/prep or file:///shared/prep")
        return given or None


def list_section_fields(models: Sequence[type[BaseParams]]) -> dict[str, FieldInfo]:
    """The keys of a section, in pipeline order; one that two of its stages go by stands once."""
    return {name: field for model in models for name, field in model.model_fields.items()}


def list_section_models() -> dict[str, list[type[BaseParams]]]:
    """Section of prep.toml -> the Params classes whose fields are its keys, in pipeline order."""
    models: dict[str, list[type[BaseParams]]] = {}
    for stage in STAGES:
        models.setdefault(stage.section, []).append(stage.load_module().Params)
    models["refresh"].append(RefreshParams)
    return models


class PipelineSettings:
    """All sections' values and where they came from; `validate_params` and `validate_refresh_params` give them
    checked."""

    def __init__(self, sections: Sections, origins: Mapping[tuple[str, str], str]) -> None:
        self.sections = sections
        self.origins = origins
        self.local_paths: dict[str, Any] = {}
        """The keys of [pairs] that name URLs, with the files of this machine in their place."""

    def describe_remembered(self) -> str | None:
        """The values that no file and no flag of this command gave, for a person to see; None where there are none."""
        found = {
            at: self.sections[at[0]][at[1]] for at, label in self.origins.items() if label.startswith(REMEMBERED_LABEL)
        }
        # a database's URL may hold a password
        lines = [
            f"[{s}] {name} = {'(kept)' if name == 'database' else repr(redact_url(v))}"
            for (s, name), v in found.items()
        ]
        return f"settings of earlier commands hold too (there is no prep.toml): {', '.join(lines)}" if lines else None

    def describe_flags(self) -> str | None:
        """The flags of this command, for a person to see that a prep.toml does not hold them; None without any."""
        flags = [label for label in self.origins.values() if label.startswith("--")]
        return f"for this command alone: {', '.join(flags)}; what is to stay goes into prep.toml" if flags else None

    def validate_params(self) -> dict[str, BaseParams]:
        """Stage name -> its checked Params. Raises `InputError` naming the section, the key and the value."""
        found = {stage.name: self.validate_section(stage.section, stage.load_module().Params) for stage in STAGES}
        if problems := [self._describe_ignored(one) for one in find_ignored_options(found) if self._is_mistake(one)]:
            raise InputError("\n".join(problems))
        return found

    def _is_mistake(self, one: IgnoredOption) -> bool:
        """Is what is ignored a mistake? A flag is; a key of the file is, unless a flag of this command chose another
        way than the file describes; what is remembered was checked when it was given."""
        label, others = (
            self.origins["mine", one.name],
            (self.origins.get(("mine", name), "") for name in one.dependencies),
        )
        return _is_flag(label) or not (label.startswith(REMEMBERED_LABEL) or any(map(_is_flag, others)))

    def _describe_ignored(self, one: IgnoredOption) -> str:
        return f"{self.origins['mine', one.name]} = {self.sections['mine'][one.name]!r} {one.reason}"

    def validate_refresh_params(self) -> RefreshParams:
        """What a refresh keeps, checked."""
        return self.validate_section("refresh", RefreshParams)

    def validate_section(self, section: str, model: type[ParamsT]) -> ParamsT:
        """The values of `section` as `model`. Raises `InputError` naming each that is wrong, and where it was
        given."""
        given = self.sections.get(section, {}) | (self.local_paths if section == "pairs" else {})
        values = {name: v for name, v in given.items() if name in model.model_fields}
        try:
            return model(**values)
        except ValidationError as error:
            raise InputError(
                "\n".join(self._describe_problem(section, problem) for problem in error.errors())
            ) from None

    def _describe_problem(self, section: str, problem: Any) -> str:
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        if not name:
            return f"[{section}] {message}"
        where = self.origins.get((section, name), f"[{section}] {name}")
        return f"{where} = {redact_url(problem['input'])!r}: {message[0].lower()}{message[1:]}"


def _is_flag(label: str) -> bool:
    return label.startswith("--")


def load_settings(
    config: Path | None, workspace: Workspace, section: str | None, flags: Mapping[str, Any]
) -> tuple[PipelineSettings, bool]:
    """Settings of one command: prep.toml (or what the workspace remembers, where there is none), then `flags`.

    Returns the settings and whether a prep.toml was read. `flags` are the values given on the command line for
    `section`. Raises `InputError` for a file that can't be read, an unknown section or key.
    """
    path = config or Path("prep.toml")
    if config and not path.is_file():
        raise InputError(f"there is no file {path}. `prep init` writes one, or name another with --config.")
    from_file = path.is_file()
    if from_file:
        sections, label = _read_toml(path), str(path)
        _check_names(sections, label)
        _resolve_paths(path.parent, sections)
    else:
        sections, label = read_remembered_flags(workspace), REMEMBERED_LABEL
        if (
            section and _INPUT_KEYS & flags.keys()
        ):  # another table is another job: nothing of the old one's columns fits
            sections = {**sections, section: {}}
    source = {(s, name): f"{label} [{s}] {name}" for s, values in sections.items() for name in values}
    if section:
        sections = {**sections, section: {**sections.get(section, {}), **flags}}
        source |= {(section, name): f"--{name.replace('_', '-')}" for name in flags}
    return PipelineSettings(sections, source), from_file


def read_remembered_flags(workspace: Workspace) -> Sections:
    """The flags that earlier commands were given, where no prep.toml holds the settings."""
    path = workspace.root / "settings.json"
    try:
        sections: Sections = json.loads(path.read_text(encoding="utf-8"))
        _check_names(sections, str(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, InputError) as error:
        raise InputError(f"{path} can't be used ({error}). Delete it and give the flags again.") from error
    return sections


def remember_flags(workspace: Workspace, section: str, flags: Mapping[str, Any]) -> None:
    """Keep a command's flags for the commands after it (only used where there is no prep.toml)."""
    if not flags:
        return
    sections = read_remembered_flags(workspace)
    kept = {} if _INPUT_KEYS & flags.keys() else sections.get(section, {})
    sections[section] = {**kept, **flags}
    _resolve_paths(Path.cwd(), sections)
    path = workspace.root / "settings.json"
    write_durably(path, json.dumps(sections, indent=1, ensure_ascii=False))
    path.chmod(0o600)  # a database's URL may hold a password


def _read_toml(path: Path) -> Sections:
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    return sections


def _check_names(sections: Mapping[str, Any], label: str) -> None:
    models = list_section_models()
    for section, values in sections.items():
        if not isinstance(values, dict):
            raise InputError(
                f"{label}: {section} = {values!r} stands outside a section. Sections: {_join_names(models)}."
            )
        if section not in models:
            close = _suggest_name(section, models)
            raise InputError(f"{label}: unknown section [{section}]{close}. Sections: {_join_names(models)}.")
        known = {name for model in models[section] for name in model.model_fields}
        for name in values.keys() - known:
            close = _suggest_name(name, known)
            raise InputError(f"{label} [{section}]: unknown key {name!r}{close}. Keys: {_join_names(known)}.")


def _suggest_name(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _join_names(names: Any) -> str:
    return ", ".join(sorted(names))


def _resolve_paths(folder: Path, sections: Sections) -> None:
    for section, models in list_section_models().items():
        given = sections.get(section, {})
        for model in models:
            for name in model.fields_with_mark("path") & given.keys():
                given[name] = _make_absolute(given[name], folder)
            for name in model.fields_with_mark("model") & given.keys():
                given[name] = _resolve_model_path(given[name], folder)


def _resolve_model_path(value: Any, folder: Path) -> Any:
    if isinstance(value, list | tuple):
        return [_resolve_model_path(item, folder) for item in value]
    if isinstance(value, str) and value and (folder / value).is_dir():
        return str((folder / value).absolute())
    return value


def _make_absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, list | tuple):
        return [_make_absolute(item, folder) for item in value]
    if not isinstance(value, str) or value in ("", "-"):
        return value
    scheme, _, rest = value.partition(":///")
    if scheme == "sqlite":
        return f"sqlite:///{_make_absolute(rest, folder)}"
    return value if "://" in value else str(folder / Path(value).expanduser())


def render_commented_toml() -> str:
    """A prep.toml that holds every key with its default and its meaning, all but the tables commented out."""
    lines = ["# prep.toml: the settings of `prep`. Every key is shown with its default; take away the # to change one."]
    lines += [
        '# "" means unset. Relative paths are relative to this file. The same keys are flags: `prep COMMAND --help`.',
        "",
    ]
    for section, models in list_section_models().items():
        lines.append(f"[{section}]")
        for name, field in list_section_fields(models).items():
            lines += [f"# {line}" for line in textwrap.wrap(field.description or "", 110)]
            given = name == "tables"
            lines.append('tables = ["questions.csv"]' if given else f"# {name} = {_format_toml_value(field.default)}")
            lines.append("")
    return "\n".join(lines)


def _format_toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return '""' if value is None else json.dumps(value, ensure_ascii=False)

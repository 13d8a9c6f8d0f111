"""Settings: prep.toml, then --set, then flags, checked into each stage's Params.

pydantic-settings was tried for the merge: it knows neither where a value came from, which every message names, nor
sections that several stages share.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import ValidationError, field_validator
from pydantic.fields import FieldInfo

from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.graph import STAGES
from pipeline.workflow.option_dependencies import IgnoredOption, find_ignored_options
from pipeline.workflow.remote_files import is_url, redact_url
from pipeline.workflow.renamed_settings import describe_old_setting
from stages.core.errors import InputError
from stages.core.files import write_durably
from stages.core.params import RUN_SECTION, BaseParams, RunParams, has_mark, option

REMEMBERED_LABEL = "remembered setting"
_INPUT_KEYS = {"tables", "sql", "beir"}
ParamsT = TypeVar("ParamsT", bound=BaseParams)
Sections = dict[str, dict[str, Any]]


class GivenSetting(NamedTuple):
    """A setting that a command was given: by its flag, or by --set."""

    section: str
    name: str
    value: Any
    label: str
    """What was typed: "--top-k" or "--set search.top_k"."""


class RefreshParams(BaseParams):
    """What a refresh keeps; how it decides stands in the gate's parameters."""

    keep: int = option(3, "Publications to keep, the current one included.", ge=1)
    publish_to: str | None = option(
        None,
        "URL (s3://, gs://, abfs:// or file://) to copy each publication to.",
    )

    @field_validator("publish_to")
    @classmethod
    def _validate_url(cls, given: str | None) -> str | None:
        if given and not is_url(given):
            raise ValueError("this is no URL such as s3://bucket/prep or file:///shared/prep")
        return given or None


def list_section_fields() -> dict[str, dict[str, FieldInfo]]:
    """Section of prep.toml -> its keys, both in the order of the steps; [run], which all steps share, comes last.

    A key that several stages read stands once.
    """
    fields: dict[str, dict[str, FieldInfo]] = {}
    models: list[tuple[str, type[BaseParams]]] = [(stage.section, stage.load_module().Params) for stage in STAGES]
    models.append(("refresh", RefreshParams))
    for own_section, model in models:
        for name, section in model.field_sections(own_section).items():
            if section != RUN_SECTION:
                fields.setdefault(section, {}).setdefault(name, model.model_fields[name])
    return {**fields, RUN_SECTION: dict(RunParams.model_fields)}


class PipelineSettings:
    """All sections' values and where they came from; `validate_params` and `validate_refresh_params` give them
    checked."""

    def __init__(self, sections: Sections, origins: Mapping[tuple[str, str], str]) -> None:
        self.sections = sections
        self.origins = origins
        self.local_paths: dict[str, Any] = {}
        """The keys of [pairs] that name URLs, with the files of this machine in their place."""

    def describe_remembered(self) -> str | None:
        """The values that no file and no flag of this command gave, for a person to see; None if there are none."""
        found = {
            at: self.sections[at[0]][at[1]] for at, label in self.origins.items() if label.startswith(REMEMBERED_LABEL)
        }
        # a database's URL may hold a password
        lines = [
            f"[{s}] {name} = {'(kept)' if name == 'database' else repr(redact_url(v))}"
            for (s, name), v in found.items()
        ]
        return (
            f"settings of earlier commands are used too (there is no prep.toml): {', '.join(lines)}" if lines else None
        )

    def describe_given(self) -> str | None:
        """The settings that this command was given, for a person to see that a prep.toml lacks them; None without
        any."""
        labels = [label for label in self.origins.values() if _is_given(label)]
        return (
            f"for this command only: {', '.join(labels)}; to keep a value, write it into prep.toml" if labels else None
        )

    def validate_params(self) -> dict[str, BaseParams]:
        """Stage name -> its checked Params. Raises `InputError` naming the section, the key and the value of each
        mistake."""
        found: dict[str, BaseParams] = {}
        problems: list[str] = []
        for stage in STAGES:
            try:
                found[stage.name] = self.validate_section(stage.section, stage.load_module().Params)
            except InputError as error:
                problems += str(error).splitlines()
        if not problems:
            problems = [self._describe_ignored(one) for one in find_ignored_options(found) if self._is_mistake(one)]
        if problems:
            raise InputError("\n".join(dict.fromkeys(problems)))
        return found

    def _is_mistake(self, one: IgnoredOption) -> bool:
        """Whether what is ignored is a mistake. A flag is; a key of the file is, unless a flag of this command chose
        another way than the file describes; what is remembered was checked when it was given."""
        label = self.origins[one.section, one.name]
        others = (self.origins.get(dependency, "") for dependency in one.dependencies)
        return _is_given(label) or not (label.startswith(REMEMBERED_LABEL) or any(map(_is_given, others)))

    def _describe_ignored(self, one: IgnoredOption) -> str:
        at = one.section, one.name
        return f"{self.origins[at]} = {self.sections[one.section][one.name]!r} {one.reason}"

    def validate_refresh_params(self) -> RefreshParams:
        """What a refresh keeps, checked."""
        return self.validate_section("refresh", RefreshParams)

    def validate_section(self, own_section: str, model: type[ParamsT]) -> ParamsT:
        """The values of a stage's `model`, from `own_section` and the sections that its fields name.

        Raises `InputError` naming each value that is wrong, and where it was given.
        """
        sections = model.field_sections(own_section)
        values = {}
        for name, section in sections.items():
            given = self.sections.get(section, {}) | (self.local_paths if section == "pairs" else {})
            if name in given:
                values[name] = given[name]
        if values.get("dtype") == "float16" and "float16" not in get_args(model.model_fields["dtype"].annotation):
            values["dtype"] = "float32"  # only the encoder computes in float16
        try:
            return model(**values)
        except ValidationError as error:
            problems = [self._describe_problem(own_section, sections, problem) for problem in error.errors()]
            raise InputError("\n".join(problems)) from None

    def _describe_problem(self, own_section: str, sections: Mapping[str, str], problem: Any) -> str:
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        if not name:
            return f"[{own_section}] {message}"
        where = self.origins.get((sections[name], name), f"[{sections[name]}] {name}")
        return f"{where} = {redact_url(problem['input'])!r}: {message[0].lower()}{message[1:]}"


def _is_given(label: str) -> bool:
    return label.startswith("--")


def load_settings(
    config: Path | None, workspace: Workspace, given: Sequence[GivenSetting] = ()
) -> tuple[PipelineSettings, bool]:
    """Settings of one command: prep.toml (or what the workspace remembers, if there is none), then `given`.

    Returns the settings and whether a prep.toml was read. Raises `InputError` for a file that can't be read and for
    sections and keys that do not exist, all of them at once.
    """
    path = config or Path("prep.toml")
    if config and not path.is_file():
        raise InputError(f"there is no file {path}. `prep init` writes one, or name another with --config.")
    from_file = path.is_file()
    if from_file:
        sections, label = _read_toml(path), str(path)
        _require_known_names(sections, label)
        _resolve_paths(path.parent, sections)
    else:
        sections, label = read_remembered_settings(workspace), REMEMBERED_LABEL
        if _names_another_input(given):
            sections.pop("pairs", None)
    origins = {(s, name): f"{label} [{s}] {name}" for s, values in sections.items() for name in values}
    for one in given:
        sections.setdefault(one.section, {})[one.name] = one.value
        origins[one.section, one.name] = one.label
    return PipelineSettings(sections, origins), from_file


def parse_overrides(texts: Iterable[str]) -> list[GivenSetting]:
    """The settings of --set, each "section.key=value". The value is TOML; what is no TOML is a text.

    Raises `InputError` for what is not of this form, and for sections and keys that do not exist.
    """
    found = []
    for text in texts:
        place, equals, value = text.partition("=")
        section, dot, name = place.strip().partition(".")
        if not (equals and dot and section and name):
            raise InputError(f"--set {text}: write section.key=value, as in --set search.top_k=100")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value.strip()
        found.append(GivenSetting(section, name, parsed, f"--set {section}.{name}"))
    for one in found:
        _require_known_names({one.section: {one.name: one.value}}, "--set")
    return found


def read_remembered_settings(workspace: Workspace) -> Sections:
    """The settings that earlier commands were given while no prep.toml held them."""
    path = workspace.root / "settings.json"
    try:
        sections: Sections = json.loads(path.read_text(encoding="utf-8"))
        _require_known_names(sections, str(path))
    except FileNotFoundError:
        return {}
    except InputError as error:
        raise InputError(f"{error}\nDelete {path} and give the settings again.") from error
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} can't be used ({error}). Delete it and give the settings again.") from error
    return sections


def remember_settings(workspace: Workspace, given: Sequence[GivenSetting]) -> None:
    """Keep the settings that a command was given for the commands after it (only used if there is no prep.toml)."""
    if not given:
        return
    sections = read_remembered_settings(workspace)
    if _names_another_input(given):
        sections.pop("pairs", None)
    for one in given:
        sections.setdefault(one.section, {})[one.name] = one.value
    _resolve_paths(Path.cwd(), sections)
    path = workspace.root / "settings.json"
    write_durably(path, json.dumps(sections, indent=1, ensure_ascii=False))
    path.chmod(0o600)  # a database's URL may hold a password


def _names_another_input(given: Iterable[GivenSetting]) -> bool:
    """Whether a command names other tables: then no column that was named for the old ones fits."""
    return any(one.section == "pairs" and one.name in _INPUT_KEYS for one in given)


def _read_toml(path: Path) -> Sections:
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    return sections


def _require_known_names(sections: Mapping[str, Any], label: str) -> None:
    """Raise `InputError` naming every section and key that does not exist, with what stands in its place."""
    fields = list_section_fields()
    problems = []
    for section, values in sections.items():
        if not isinstance(values, dict):
            problems.append(f"{section} = {values!r} stands outside a section. Sections: {_join_names(fields)}.")
            continue
        known = fields.get(section, {})
        unknown = [name for name in values if name not in known]
        old = {name: text for name in unknown if (text := describe_old_setting(section, name))}
        problems += old.values()
        if section not in fields:
            problems.append(
                f"unknown section [{section}]{_suggest_name(section, fields)}. Sections: {_join_names(fields)}."
            )
            continue
        problems += [
            f"[{section}]: unknown key {name!r}{_suggest_name(name, known)}. Keys: {_join_names(known)}."
            for name in unknown
            if name not in old
        ]
    if problems:
        raise InputError("\n".join(f"{label}: {problem}" for problem in problems))


def _suggest_name(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _join_names(names: Any) -> str:
    return ", ".join(sorted(names))


def _resolve_paths(folder: Path, sections: Sections) -> None:
    for section, fields in list_section_fields().items():
        given = sections.get(section, {})
        for name in fields.keys() & given.keys():
            if has_mark(fields[name], "path"):
                given[name] = _make_absolute(given[name], folder)
            elif has_mark(fields[name], "model"):
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

"""The kinds of commands: which options they take, and how their help is laid out."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import click

COMMON_OPTIONS = (
    click.Option(
        ["--workspace"], type=click.Path(path_type=Path), default=Path("work"), show_default=True,
        envvar="PREP_WORKSPACE", help="The folder that holds everything prep makes.",
    ),
    click.Option(
        ["--config"], type=click.Path(path_type=Path), help="The settings file. [default: prep.toml, if there is one]"
    ),
    click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object on stdout, for scripts."),
    click.Option(["-v", "--verbose"], is_flag=True, help="Without a terminal, report progress every second."),
    click.Option(["-q", "--quiet"], is_flag=True, help="Print only errors on stderr."),
)  # fmt: skip

SET_OPTION = click.Option(
    ["--set", "overrides"], multiple=True, metavar="SECTION.KEY=VALUE",
    help="Change a setting of prep.toml for this command. Repeat it for several.",
)  # fmt: skip

EXECUTOR_OPTION = click.Option(
    ["--executor"], metavar="local|ray|ray://HOST:PORT", default="local", show_default=True, envvar="PREP_EXECUTOR",
    help="Run models and search on this machine or on a Ray cluster: that of the address or of RAY_ADDRESS, else one "
    "that is started here.",
)  # fmt: skip


class _PrepCommand(click.Command):
    """A command whose help shows the options that people use first, then "Advanced", then those of every command."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings."""
        common = {id(option) for option in (SET_OPTION, EXECUTOR_OPTION, *COMMON_OPTIONS)}
        records: dict[str, list[tuple[str, str]]] = {"Options": [], "Advanced": [], "Common": []}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                is_common = id(param) in common or "--help" in param.opts
                heading = "Common" if is_common else "Advanced" if getattr(param, "is_advanced", False) else "Options"
                records[heading].append(record)
        for heading, rows in records.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class SettingsCommand(_PrepCommand):
    """A command that reads prep.toml. It takes --set, and the keys of some sections as flags.

    The flags are made when they are first needed, so that `prep --help` loads none of the steps.
    """

    sections: tuple[str, ...] = ()
    """All keys of these sections are flags, but for those that stand in prep.toml only."""
    run_keys: tuple[str, ...] = ()
    """These keys of [run] are flags too."""
    uses_executor = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own options, its settings', the executor's if it has work for one, the common ones, --help."""
        *own, help_option = super().get_params(ctx)
        flags = [option for _, option in self.setting_options]
        executor = [EXECUTOR_OPTION] if self.uses_executor else []
        return [*own, *flags, *executor, SET_OPTION, *COMMON_OPTIONS, help_option]

    @cached_property
    def setting_options(self) -> Sequence[tuple[str, click.Option]]:
        """Section and flag of each setting: name, type, default and help come from the Params."""
        if not self.sections:
            return []
        from pipeline.cli.options import make_setting_options

        return make_setting_options(self.sections, self.run_keys)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; the old flag of a renamed setting is taken for the new one, and a line says so."""
        known = {name for option in self.get_params(ctx) for name in (*option.opts, *option.secondary_opts)}
        for place, argument in enumerate(args):
            flag, equals, value = argument.partition("=")
            if flag.startswith("--") and flag not in known and (new_flag := self._find_new_flag(flag)) in known:
                click.echo(f"prep: {flag} is now {new_flag}", err=True)
                args[place] = f"{new_flag}{equals}{value}"
        return super().parse_args(ctx, args)

    def _find_new_flag(self, flag: str) -> str | None:
        from pipeline.workflow.renamed_settings import RENAMED_SETTINGS

        prefix = "--no-" if flag.startswith("--no-") else "--"
        old_name = flag.removeprefix(prefix).replace("-", "_")
        found = [RENAMED_SETTINGS.get(f"{section}.{old_name}") for section in self.sections]
        return next((f"{prefix}{new.split('.')[1].replace('_', '-')}" for new in found if new), None)

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command with the settings that were typed as `given`, those of --set before the flags."""
        from pipeline.workflow.config import GivenSetting, parse_overrides

        given = parse_overrides(ctx.params.pop("overrides"))
        for section, option in self.setting_options:
            value = ctx.params.pop(str(option.name))
            if value is not None and value != ():
                given.append(GivenSetting(section, str(option.name), value, option.opts[0]))
        ctx.params["given"] = given
        return super().invoke(ctx)


class ParamsCommand(_PrepCommand):
    """A command that reads no prep.toml. Its flags are the fields of the Params of `module`, if it names one."""

    def __init__(self, *arguments: Any, module: str | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.module = module

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own options, those of the fields, the common ones, --help."""
        *own, help_option = super().get_params(ctx)
        return [*own, *self.field_options, *COMMON_OPTIONS, help_option]

    @cached_property
    def field_options(self) -> list[click.Option]:
        """One flag for each field."""
        if self.module is None:
            return []
        from importlib import import_module

        from pipeline.cli.options import make_option

        return [make_option(name, field) for name, field in import_module(self.module).Params.model_fields.items()]


class OrderedGroup(click.Group):
    """Commands are listed in the order in which the data passes them, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names as they were registered."""
        return list(self.commands)


def print_result(options: dict[str, Any], result: Any) -> None:
    """Print a command's result: one JSON object with --json, else its lines and tables for a person."""
    if options["as_json"]:
        click.echo(json.dumps(result.data, ensure_ascii=False, default=str))
        return
    from pipeline.cli.output import print_parts

    print_parts(result.parts)

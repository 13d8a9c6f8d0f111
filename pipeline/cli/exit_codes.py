"""How a command ends: one message on stderr and an exit code."""

import contextlib
import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from stages.core.errors import InputError, PrepError, QualityGateError, WorkspaceBusyError

EXIT_CODES: dict[type[PrepError], int] = {InputError: 2, QualityGateError: 3, WorkspaceBusyError: 75}
ENVIRONMENT_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO}
"""Refusals of the operating system that the person at the keyboard can fix, wherever they occur."""


def run_with_exit_code(command: Callable[[], Any]) -> int:
    """Run it; a failure becomes one message and the exit code that scripts can act on."""
    try:
        code = command()
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = report_failure("interrupted; the next run goes on from here", 130)
    except click.UsageError as error:
        usage = error.ctx.get_usage() + "\n" if error.ctx else ""
        code = report_failure(error.format_message(), error.exit_code, usage)
    except click.ClickException as error:
        code = report_failure(error.format_message(), error.exit_code)
    except PrepError as error:
        code = report_failure(str(error), next(c for kind, c in EXIT_CODES.items() if isinstance(error, kind)))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains when it closes stdout
        code = 0
    except OSError as error:
        if error.errno not in ENVIRONMENT_ERRNOS:
            code = report_internal_error()
        else:
            code = report_failure(
                f"{error.filename or 'a file'}: {error.strerror}. Fix its permissions, or free space.", 2
            )
    except Exception:
        code = report_internal_error()
    return code if isinstance(code, int) else 0


def report_internal_error() -> int:
    """Report a failure that only a change of prep can fix, with its traceback."""
    traceback.print_exc()
    return report_failure("this is a defect of prep, not of your data. Please report it with the traceback above.", 1)


def report_failure(message: str, code: int, usage: str = "") -> int:
    """Print what went wrong on stderr, and with --json as an object on stdout too; returns the exit code."""
    click.echo(f"{usage}prep: {message}", err=True)
    if "--json" in sys.argv:
        with contextlib.suppress(OSError):
            click.echo(json.dumps({"error": message, "exit": code}, ensure_ascii=False))
    return code

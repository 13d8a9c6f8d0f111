"""What can go wrong that is not a defect of ours; the command line turns each class into one exit code."""


class PrepError(Exception):
    """A failure that the user can fix; the message says what is wrong, where, and how to fix it."""


class InputError(PrepError):
    """The input, the configuration or the environment is wrong (exit 2)."""


class QualityGateError(PrepError):
    """A check of quality failed, so the result is not published (exit 3)."""


class WorkspaceBusyError(PrepError):
    """Another run holds the workspace (exit 75, the sysexits code for "try again later")."""

"""Parameters of mining that have an effect only with others: if these are missing, the parameter is refused.

The Params of a stage check its own parameters; this table holds the dependencies between stages. A value that equals
the default can't be distinguished from one that was not given, and is accepted.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.workflow.graph import STAGES_BY_NAME
from stages.core.params import BaseParams

MINING_STAGES = ("features", "verify", "mask", "sample")
ANY_VALUE: tuple[Any, ...] = ()
"""Any value but the default."""

OPTION_DEPENDENCIES: dict[str, dict[str, tuple[Any, ...]]] = {
    "max_false_negatives": {"mask": ("learned",), "verifier": ANY_VALUE, "llm_judge": ANY_VALUE},
    "rank_window": {"mask": ("window",)},
    "relabel_min_probability": {"relabel": ("positive",)},
    "verifier_budget": {"verifier": ANY_VALUE},
    "verifier_max_length": {"verifier": ANY_VALUE},
    "llm_judge_model": {"llm_judge": ANY_VALUE},
    "llm_judge_budget": {"llm_judge": ANY_VALUE},
}
"""Parameter -> the parameters of which at least one must have one of these values."""


class IgnoredOption(NamedTuple):
    """A parameter that is given and has no effect."""

    section: str
    name: str
    dependencies: tuple[tuple[str, str], ...]
    """Section and name of each parameter that it depends on."""
    reason: str
    """The end of a sentence that starts with "name = value"."""


def find_ignored_options(params: Mapping[str, BaseParams]) -> list[IgnoredOption]:
    """The parameters in `params` (stage -> its Params) that are given and would have no effect."""
    defaults = {
        name: field.default for stage in MINING_STAGES for name, field in type(params[stage]).model_fields.items()
    }
    sections = {
        name: section
        for stage in MINING_STAGES
        for name, section in type(params[stage]).field_sections(STAGES_BY_NAME[stage].section).items()
    }
    values = {name: value for stage in MINING_STAGES for name, value in params[stage]}
    given = [name for name, value in values.items() if value not in ("", defaults[name])]

    def is_met(other: str, required_values: tuple[Any, ...]) -> bool:
        return values[other] in required_values if required_values else other in given

    ignored = []
    for name in given:
        alternatives = OPTION_DEPENDENCIES.get(name, {})
        if alternatives and not any(is_met(*dependency) for dependency in alternatives.items()):
            reason = f"needs {_join_alternatives(alternatives)}: give that, or leave it at {defaults[name]!r}"
            ignored.append(IgnoredOption(sections[name], name, tuple((sections[n], n) for n in alternatives), reason))
    return ignored


def _join_alternatives(alternatives: Mapping[str, tuple[Any, ...]]) -> str:
    return " or ".join(f"{name} = {values[0]!r}" if values else f"a {name}" for name, values in alternatives.items())

"""What a parameter of mining needs beside it to count for anything: given without, it is refused and not ignored.

What one stage can tell by itself its Params check; here is what takes several, as data. A value that equals the default
can't be distinguished from one that was not given, and is accepted.
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
"""Parameter -> the others of which one must have one of these values."""


class IgnoredOption(NamedTuple):
    """A parameter that is given and counts for nothing."""

    section: str
    name: str
    dependencies: tuple[tuple[str, str], ...]
    """Section and name of each parameter that it depends on."""
    reason: str
    """A sentence that follows on "name = value"."""


def find_ignored_options(params: Mapping[str, BaseParams]) -> list[IgnoredOption]:
    """What of `params` (stage -> its Params) is given and would be ignored."""
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

    def is_met(other: str, wanted: tuple[Any, ...]) -> bool:
        return values[other] in wanted if wanted else other in given

    found = []
    for name in given:
        alternatives = OPTION_DEPENDENCIES.get(name, {})
        if alternatives and not any(is_met(other, wanted) for other, wanted in alternatives.items()):
            why = f"needs {_join_alternatives(alternatives)}: give that, or leave it at {defaults[name]!r}"
            found.append(IgnoredOption(sections[name], name, tuple((sections[n], n) for n in alternatives), why))
    return found


def _join_alternatives(needs: Mapping[str, tuple[Any, ...]]) -> str:
    return " or ".join(f"{name} = {wanted[0]!r}" if wanted else f"a {name}" for name, wanted in needs.items())

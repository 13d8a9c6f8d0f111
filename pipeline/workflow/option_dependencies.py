"""What a parameter of mining needs beside it to count for anything: given without, it is refused and not ignored.

What one stage can tell by itself its Params check; here is what takes several, as data. A value that equals the default
can't be told from one that nobody gave, and passes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.workflow.graph import STAGES_BY_NAME
from stages.core.params import BaseParams

MINING_STAGES = ("features", "verify", "mask", "sample")
ANY_VALUE: tuple[Any, ...] = ()
"""Any value but the default."""

OPTION_DEPENDENCIES: dict[str, dict[str, tuple[Any, ...]]] = {
    "min_answer_chars": {"exclude_answers": (True,)},
    "max_false_negatives": {"mask": ("learned",), "verifier": ANY_VALUE, "llm_judge": ANY_VALUE},
    "window_start": {"mask": ("window",)},
    "window_end": {"mask": ("window",)},
    "relabel_min_probability": {"relabel": ("positive",)},
    "verifier_rule": {"verifier": ANY_VALUE},
    "verifier_threshold": {"verifier_rule": ANY_VALUE},
    "verifier_budget": {"verifier": ANY_VALUE},
    "verifier_max_length": {"verifier": ANY_VALUE},
    "verifier_base": {"verifier": ("self",)},
    "folds": {"verifier": ("self",)},
    "llm_judge_model": {"llm_judge": ANY_VALUE},
    "llm_judge_budget": {"llm_judge": ANY_VALUE},
    "simans_a": {"sampling": ("simans",)},
    "simans_b": {"sampling": ("simans",)},
    "quota_head": {"sampling": ("quota",)},
    "quota_middle": {"sampling": ("quota",)},
    "quota_random": {"sampling": ("quota",)},
    "slice": {"sampling": ("slices",)},
    "slices": {"sampling": ("slices",)},
}
"""Parameter -> the others of which one must have one of these values."""

STAGES_SKIPPED_BY_SLICES = ("features", "verify", "mask")
"""Stages that sampling = slices does without."""
OPTIONS_UNUSED_BY_SLICES = ("num_negatives", "thin_similarity")
"""What it does not look at in compose; the rest compose refuses by itself."""


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
    is_sliced = values["sampling"] == "slices"
    unused = {
        *OPTIONS_UNUSED_BY_SLICES,
        *(n for stage in STAGES_SKIPPED_BY_SLICES for n in type(params[stage]).model_fields if sections[n] != "run"),
    }

    def is_met(other: str, wanted: tuple[Any, ...]) -> bool:
        return values[other] in wanted if wanted else other in given

    found = []
    for name in given:
        alternatives = OPTION_DEPENDENCIES.get(name, {})
        if is_sliced and name in unused:
            why = "does not count with sampling = 'slices', which mines and masks nothing: leave it"
            found.append(IgnoredOption(sections[name], name, (("mine", "sampling"),), f"{why} at {defaults[name]!r}"))
        elif alternatives and not any(is_met(other, wanted) for other, wanted in alternatives.items()):
            why = f"counts only with {_join_alternatives(alternatives)}: give that, or leave it at {defaults[name]!r}"
            found.append(IgnoredOption(sections[name], name, tuple((sections[n], n) for n in alternatives), why))
    return found


def _join_alternatives(needs: Mapping[str, tuple[Any, ...]]) -> str:
    return " or ".join(f"{name} = {wanted[0]!r}" if wanted else f"a {name}" for name, wanted in needs.items())

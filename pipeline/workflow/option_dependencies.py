"""What a parameter of mining needs beside it to count for anything: given without, it is refused and not ignored.

What one stage can tell by itself its Params check; here is what takes several, as data. A value that equals the default
can't be told from one that nobody gave, and passes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from stages.core.params import Params

STAGES = ("evidence", "verify", "mask", "compose")
GIVEN: tuple[Any, ...] = ()
"""Any value but the default."""

NEEDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "min_answer_chars": {"answers": (True,)},
    "max_false_negatives": {"mask": ("learned",), "teacher": GIVEN, "judge": GIVEN},
    "window_start": {"mask": ("window",)},
    "window_end": {"mask": ("window",)},
    "above": {"relabel": ("positive",)},
    "teacher_rule": {"teacher": GIVEN},
    "teacher_threshold": {"teacher_rule": GIVEN},
    "teacher_budget": {"teacher": GIVEN},
    "teacher_max_length": {"teacher": GIVEN},
    "teacher_base": {"teacher": ("self",)},
    "folds": {"teacher": ("self",)},
    "judge_model": {"judge": GIVEN},
    "judge_budget": {"judge": GIVEN},
    "simans_a": {"sampling": ("simans",)},
    "simans_b": {"sampling": ("simans",)},
    "quota_head": {"sampling": ("quota",)},
    "quota_middle": {"sampling": ("quota",)},
    "quota_random": {"sampling": ("quota",)},
    "slice": {"sampling": ("slices",)},
    "slices": {"sampling": ("slices",)},
}
"""Parameter -> the others of which one must have one of these values."""

UNASKED = ("evidence", "verify", "mask")
"""Stages that sampling = slices does without."""
UNUSED = ("negatives", "thin_similarity")
"""What it does not look at in compose; the rest compose refuses by itself."""


class Ignored(NamedTuple):
    """A parameter that is given and counts for nothing."""

    name: str
    others: tuple[str, ...]
    """What it hangs on."""
    why: str
    """A sentence that follows on "name = value"."""


def ignored(params: Mapping[str, Params]) -> list[Ignored]:
    """What of `params` (stage -> its Params) is given and would be ignored."""
    fields = {name: field.default for stage in STAGES for name, field in type(params[stage]).model_fields.items()}
    values = {name: value for stage in STAGES for name, value in params[stage]}
    given = [name for name, value in values.items() if value not in ("", fields[name])]
    sliced = values["sampling"] == "slices"
    unread = {*UNUSED, *(name for stage in UNASKED for name in type(params[stage]).model_fields)}

    def met(other: str, wanted: tuple[Any, ...]) -> bool:
        return values[other] in wanted if wanted else other in given

    found = []
    for name in given:
        needs = NEEDS.get(name, {})
        if sliced and name in unread:
            why = "does not count with sampling = 'slices', which mines and masks nothing: leave it"
            found.append(Ignored(name, ("sampling",), f"{why} at {fields[name]!r}"))
        elif needs and not any(met(other, wanted) for other, wanted in needs.items()):
            why = f"counts only with {_either(needs)}: give that, or leave it at {fields[name]!r}"
            found.append(Ignored(name, tuple(needs), why))
    return found


def _either(needs: Mapping[str, tuple[Any, ...]]) -> str:
    return " or ".join(f"{name} = {wanted[0]!r}" if wanted else f"a {name}" for name, wanted in needs.items())

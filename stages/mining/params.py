"""Parameters of the mask, and the part of them that other steps share."""

from typing import Any, Literal, Self

from pydantic import model_validator

from stages.core.params import BaseParams, option
from stages.mining.threshold_rules import THRESHOLD_RULES, RuleName


def num_negatives_option() -> Any:
    """The parameter `num_negatives`, which mask and sample share."""
    return option(7, "Negatives per query.", section="mine", ge=1)


def near_duplicate_similarity_option() -> Any:
    """The parameter `near_duplicate_similarity`, which mask and sample share."""
    # With MiniLM on medical FAQs, texts above 0.98 differ in a detail at most. True negatives begin below it: the
    # advice on an overdose of two drugs at 0.97, "Bardet-Biedl syndrome 6" and "7" at 0.965.
    return option(
        0.98,
        "Cosine from which on two documents count as duplicates: of a positive, or of another negative. "
        "Above 1 turns it off.",
        advanced=True,
        section="mine",
        gt=0,
        le=2,
    )


class RiskPolicy(BaseParams):
    """Which candidates may be selected as negatives; verify and mask share it."""

    max_false_negatives: float = option(
        0.02,
        "With mask = learned: accepted share of false negatives among the negatives. Lower it for a "
        "safer, easier file.",
        section="mine",
        gt=0,
        lt=1,
    )
    num_negatives: int = num_negatives_option()
    near_duplicate_similarity: float = near_duplicate_similarity_option()


class Params(RiskPolicy):
    """Which candidates are excluded as possible false negatives."""

    mask: RuleName = option(
        "learned",
        "Rule that excludes candidates as possible false negatives. learned estimates a probability; "
        "the others compare scores or ranks.",
    )
    threshold: float | None = option(
        None,
        "Number of a fixed rule. If unset: perc 0.95, margin 0.05, abs 0.7, infonce 0.1.",
        allow_inf_nan=False,
    )
    rank_window: tuple[int, int] = option(
        (10, 210),
        "With mask = window: skip the ranks up to the first number, keep those up to the second.",
        advanced=True,
    )
    relabel: Literal["no", "positive", "weight"] = option(
        "no",
        "What to do with candidates that the mask excludes: drop them, train on the likeliest as "
        "positives, or weight them.",
        advanced=True,
    )
    relabel_min_probability: float = option(
        0.9,
        "With relabel = positive: probability from which on a candidate becomes a positive.",
        flag=False,
        gt=0,
        le=1,
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.threshold is not None:
            if THRESHOLD_RULES[self.mask].default_threshold is None:
                raise ValueError(f"mask = {self.mask!r} has no threshold: remove it, or choose another mask")
            if self.mask in ("perc", "perc_max") and not 0 < self.threshold <= 2:
                raise ValueError(f"threshold = {self.threshold} for {self.mask}: use a share, such as 0.95")
        if not 0 <= self.rank_window[0] < self.rank_window[1]:
            raise ValueError(f"rank_window = {list(self.rank_window)} leaves no rank: use two ascending numbers")
        return self

    @property
    def effective_threshold(self) -> float | None:
        """The threshold, or else the rule's default; None if the rule has none."""
        return THRESHOLD_RULES[self.mask].default_threshold if self.threshold is None else self.threshold

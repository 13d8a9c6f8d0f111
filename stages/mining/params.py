"""Parameters of the mask, and the part of them that other steps share."""

from typing import Any, Literal, Self

from pydantic import model_validator

from stages.core.params import BaseParams, option
from stages.mining.threshold_rules import THRESHOLD_RULES, RuleName


def num_negatives_option() -> Any:
    """The parameter `num_negatives`: mask and compose both go by it."""
    return option(7, "Negatives a query; one that has fewer trustworthy ones keeps what it has.", section="mine", ge=1)


def near_duplicate_similarity_option() -> Any:
    """The parameter `near_duplicate_similarity`, which mask and sample share."""
    # Looked at with MiniLM on medical FAQs: from 0.98 up texts differ in a detail at most, below begin true negatives
    # (the advice on an overdose of two drugs at 0.97, "Bardet-Biedl syndrome 6" and "7" at 0.965).
    return option(
        0.98,
        "Cosine from which on two documents count as the same: one that near to a positive is no negative, and of two "
        "such negatives only the first is taken. Above 1 switches it off.",
        section="mine",
        gt=0,
        le=2,
    )


class RiskPolicy(BaseParams):
    """What of a query's candidates may be emitted: verify and mask both go by it."""

    max_false_negatives: float = option(
        0.02,
        "learned: the share of false ones that you accept among the negatives written, as expected.",
        section="mine",
        gt=0,
        lt=1,
    )
    num_negatives: int = num_negatives_option()
    near_duplicate_similarity: float = near_duplicate_similarity_option()


class Params(RiskPolicy):
    """How candidates are told from possible positives."""

    mask: RuleName = option(
        "learned",
        "Rule that sets candidates aside as possible positives. learned: too likely a false negative for how hard it "
        "is, by a model of all that is known (max_false_negatives); where that can't be trusted, perc, said. perc: "
        "above threshold x the lowest positive's score (NV-Retriever TopK-PercPos); margin: less than threshold below "
        "it (TopK-MarginPos); perc_max, margin_max: the same on the best positive; abs: a score above threshold "
        "(TopK-Abs); infonce: more than threshold above the lowest positive (SWIFT); window: a rank outside the window "
        "(FlagEmbedding); none: no rule.",
    )
    threshold: float | None = option(
        None,
        "A fixed rule's number; left out, the usual: perc 0.95, margin 0.05, abs 0.7, infonce 0.1 (for cosines).",
        allow_inf_nan=False,
    )
    rank_window: tuple[int, int] = option(
        (10, 210),
        "With mask = window: ranks up to the first number are skipped, the second is the last that may be a negative.",
    )
    relabel: Literal["no", "positive", "weight"] = option(
        "no",
        "What becomes of what the rule sets aside. no: it is left out; positive: what is a false negative with a "
        "probability of at least relabel_min_probability becomes a positive of the query in training (as in RLHN); "
        "weight: it stays a "
        "negative that counts as much as it is likely to be one (neg_weights in mined.jsonl).",
    )
    relabel_min_probability: float = option(0.9, "The probability from which on relabel makes a positive.", gt=0, le=1)

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.threshold is not None:
            if THRESHOLD_RULES[self.mask].default_threshold is None:
                raise ValueError(f"mask = {self.mask!r} has no threshold: remove it, or choose another mask")
            if self.mask in ("perc", "perc_max") and not 0 < self.threshold <= 2:
                raise ValueError(f"threshold = {self.threshold} for {self.mask}: it is a share, such as 0.95")
        if not 0 <= self.rank_window[0] < self.rank_window[1]:
            raise ValueError(f"rank_window = {list(self.rank_window)} leaves no rank: write two rising numbers")
        return self

    @property
    def effective_threshold(self) -> float | None:
        """The rule's number: as given, else the source's; None for a rule that has none."""
        return THRESHOLD_RULES[self.mask].default_threshold if self.threshold is None else self.threshold

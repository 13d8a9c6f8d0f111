"""Parameters of the sample step, and the negatives of a block of queries."""

from typing import Any, Literal, NamedTuple, Self

import polars as pl
from pydantic import field_validator, model_validator

from stages.core.params import BaseParams, option, seed_option
from stages.mining.audit import checks
from stages.mining.params import near_duplicate_similarity_option, num_negatives_option
from stages.mining.sampling import quotas


class Params(BaseParams):
    """How many negatives a query gets, and which."""

    num_negatives: int = num_negatives_option()
    sampling: Literal["top", "random", "simans"] = option(
        "top",
        "How to choose the negatives: the highest-scored, at random, or near the positive's score (SimANS).",
    )
    source_quotas: tuple[str, ...] = option(
        (),
        "Parts of the negatives by source, such as dense=4 and bm25=2.",
        advanced=True,
    )
    prefer_category: bool = option(
        False,
        "Take documents of a positive's category before all others.",
        advanced=True,
    )
    near_duplicate_similarity: float = near_duplicate_similarity_option()
    # Off by default, since it makes queries depend on each other. Measured with MiniLM on medical FAQs, 10,978
    # questions with 7 negatives each: the most used document was a negative of 334 questions, half of all documents of
    # at most 4. A cap of 50 changed 3 % of the negatives and lowered the hardness by 0.0006.
    hub_cap: int = option(
        0,
        "Let a document be a negative of at most this many queries. 0 sets no limit.",
        advanced=True,
        ge=0,
    )
    drop_positives: tuple[str, ...] = option(
        (),
        "Findings of `prep audit` whose positives are left out of training: low_ranked, outranked or inconsistent.",
        advanced=True,
    )
    positive_weight: float = option(
        0.0,
        "Weight in training of the positives that drop_positives names. 0 leaves them out.",
        flag=False,
        ge=0,
        lt=1,
    )
    seed: int = seed_option()

    @field_validator("source_quotas")
    @classmethod
    def _check_quotas(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        quotas.parse_quotas(given)
        return given

    @field_validator("drop_positives", mode="before")
    @classmethod
    def _check_findings(cls, given: Any) -> Any:
        given = ((given,) if given else ()) if isinstance(given, str) else given
        if unknown := [name for name in given if name not in checks.FINDING_KINDS]:
            raise ValueError(
                f"the audit has no finding {unknown[0]!r}; its findings are {', '.join(checks.FINDING_KINDS)}"
            )
        return tuple(name for name in checks.FINDING_KINDS if name in given)

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.positive_weight and not self.drop_positives:
            raise ValueError("positive_weight needs drop_positives: it is the weight of the positives named there")
        return self

    @property
    def quotas(self) -> list[tuple[str, int]]:
        """Sources and their parts, in the order given."""
        return quotas.parse_quotas(self.source_quotas)


class SampledBlock(NamedTuple):
    """Positives and negatives of a block of queries."""

    queries: pl.DataFrame
    """query_id and query of the train queries."""
    positives: pl.DataFrame
    """The result of `pick_positives`."""
    negatives: pl.DataFrame
    """The result of `select_negatives`."""
    n_duplicates_skipped: int
    flagged_positives: pl.DataFrame
    """query_id and finding of the positives that drop_positives removes or weights."""

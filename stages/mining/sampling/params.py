"""Parameters of the sample step, and the value that its files hand to one another."""

from typing import Any, Literal, NamedTuple, Self

import polars as pl
from pydantic import field_validator, model_validator

from stages.core.params import BaseParams, option
from stages.core.run_params import seed_option
from stages.mining.audit import checks
from stages.mining.params import near_duplicate_similarity_option, num_negatives_option
from stages.mining.sampling import quotas


class Params(BaseParams):
    """How many negatives a query gets, and which."""

    num_negatives: int = num_negatives_option()
    sampling: Literal["top", "random", "simans"] = option(
        "top",
        "Which survivors are taken. top: those that the retriever scores highest; random: any, by a seeded draw; "
        "simans: by a draw that prefers scores near the positive's (SimANS).",
    )
    source_quotas: tuple[str, ...] = option(
        (),
        "Parts of the negatives by the retriever that found them, as in dense=4 and bm25=2. A pair found by several "
        "counts for the first that has room; what a source lacks goes to the others by score. Left out: no parts.",
    )
    prefer_category: bool = option(
        False,
        "Documents of a category that a positive of the query is of come before all others: harder than "
        "random ones, easier than the top. A query whose positives have no category has no preference.",
    )
    near_duplicate_similarity: float = near_duplicate_similarity_option()
    # Off by default, since it ties queries together. Looked at with MiniLM on medical FAQs: of 10,978 questions with 7
    # negatives each, 334 had one and the same document (itself a question), while half of all documents came up at most
    # 4 times; a cap of 50 moved 3 % of the negatives for 0.0006 of hardness.
    hub_cap: int = option(
        0,
        "A document is a negative of at most this many queries (where people judged it wrong aside), those where it is "
        "hardest; the others take their next. A cap ties queries together: one that has not changed may get other "
        "negatives when others come or go. 0: no cap.",
        ge=0,
    )
    drop_positives: tuple[str, ...] = option(
        (),
        "Leave out of the training file the positives that `prep audit` lists as low_ranked, outranked or "
        "inconsistent; repeat it for several. With positive_weight they count less instead. They stay positives "
        "everywhere else: in the judgements, the mask and the evaluation.",
    )
    positive_weight: float = option(
        0.0,
        "What the positives count in training that drop_positives names: 0, they are left out; 0.3, three tenths of "
        "another's (pos_weights in mined.jsonl).",
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
                f"{unknown[0]!r} is no finding of the audit; take some of {', '.join(checks.FINDING_KINDS)}"
            )
        return tuple(name for name in checks.FINDING_KINDS if name in given)

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.positive_weight and not self.drop_positives:
            raise ValueError("positive_weight is that of the positives that drop_positives names, and it names none")
        return self

    @property
    def quotas(self) -> list[tuple[str, int]]:
        """The parts of each source, in the order given."""
        return quotas.parse_quotas(self.source_quotas)


class SampledBlock(NamedTuple):
    """What is chosen for a block of queries."""

    queries: pl.DataFrame
    """query_id, query of the block's train queries."""
    positives: pl.DataFrame
    """Of `pick_positives`."""
    negatives: pl.DataFrame
    """Of `select_negatives`."""
    n_duplicates_skipped: int
    """How many near-duplicates were passed over."""
    flagged_positives: pl.DataFrame
    """query_id, finding of the positives that the audit took away or made count less."""

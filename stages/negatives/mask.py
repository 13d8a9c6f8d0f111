"""Mask: say of every candidate whether it may be trained on as a negative, and why.

A candidate takes the first line of this table that holds for it (`PRECEDENCE` is the table as data):

| reason | verdict | holds where |
|---|---|---|
| known_positive | positive | the pair is a positive by id |
| repeated_question | ignored | the document is a positive of a question, of any split, that restates this one |
| same_text | ignored | the document's text is that of such a positive |
| curated | negative | people judged it not relevant: kept whatever its score, and added if it was not retrieved |
| contains_answer | ignored | the document holds a known answer of the query |
| near_duplicate | ignored | its vector is nearly that of a positive |
| no_positive | ignored | the rule measures from a positive and the query has none |
| the rule's name | ignored | the rule of `mask` takes it for a possible positive |
| kept | negative | none of the above |

So a curated negative gives way only where it contradicts a known positive, which is counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import model_validator

from stages import contracts
from stages.contracts import Summary, Tools
from stages.models import file_digest
from stages.negatives import known, rules
from stages.negatives.blocks import of_block, query_blocks
from stages.negatives.budget import negatives_option
from stages.negatives.documents import document_vectors, loose_forms, text_keys
from stages.negatives.rules import RULES, RuleName
from stages.params import Params as BaseParams
from stages.params import option

VERSION = 3

NEGATIVE, POSITIVE, IGNORED = "negative", "positive", "ignored"
RULE = "rule"
"""Stands for the rule's own name in `PRECEDENCE`."""

PRECEDENCE = (
    ("known_positive", POSITIVE),
    ("repeated_question", IGNORED),
    ("same_text", IGNORED),
    ("curated", NEGATIVE),
    ("contains_answer", IGNORED),
    ("near_duplicate", IGNORED),
    ("no_positive", IGNORED),
    (RULE, IGNORED),
)

ROWS_A_BLOCK = 200_000
"""Candidates looked at together; bounds memory (their document vectors are in it) and changes no result."""


class Params(BaseParams):
    """How candidates are told from possible positives."""

    mask: RuleName = option(
        "perc",
        "Rule that sets candidates aside as possible positives. perc: above threshold x the lowest positive's score "
        "(NV-Retriever TopK-PercPos); margin: less than threshold below it (TopK-MarginPos); perc_max, margin_max: the "
        "same on the best positive; abs: a score above threshold (TopK-Abs); infonce: more than threshold above the "
        "lowest positive (SWIFT); window: a rank outside the window (FlagEmbedding); none: no rule; learned: too "
        "likely a false negative for how hard it is, by a model of all that is known (max_false_negatives).",
    )
    # these two enter the key through `identity`, where the rule goes by them
    max_false_negatives: float = option(
        0.02,
        "learned: the share of false ones that you accept among the negatives written, as expected.",
        unkeyed=True,
        gt=0,
        lt=1,
    )
    negatives: int = negatives_option(unkeyed=True)
    threshold: float | None = option(
        None,
        "The rule's number; left out, the usual: perc 0.95, margin 0.05, abs 0.7, infonce 0.1 (for cosines).",
        allow_inf_nan=False,
    )
    window_start: int = option(
        10, "window: so many of the first ranks are skipped, as in FlagEmbedding's 10-210.", ge=0
    )
    window_end: int = option(210, "window: the last rank that may be a negative, as in FlagEmbedding's 10-210.", ge=1)
    answers: bool = option(
        True, "Set documents aside that hold a known answer of the query as whole words (DPR's rule)."
    )
    min_answer_chars: int = option(
        4, "Answers narrower than this are not looked for; a Chinese, Japanese or Korean character counts as two.", ge=1
    )
    # Looked at with MiniLM on medical FAQs: from 0.98 up texts differ in a detail at most, below begin true negatives
    # (the advice on an overdose of two drugs at 0.97, "Bardet-Biedl syndrome 6" and "7" at 0.965).
    duplicate_similarity: float = option(
        0.98,
        "Set documents aside whose vector has at least this cosine with a positive's; above 1 switches it off.",
        gt=0,
        le=2,
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.threshold is not None:
            if RULES[self.mask].usual is None:
                raise ValueError(f"mask = {self.mask!r} has no threshold: remove it, or choose another mask")
            if self.mask in ("perc", "perc_max") and not 0 < self.threshold <= 2:
                raise ValueError(f"threshold = {self.threshold} for {self.mask}: it is a share, such as 0.95")
        if self.window_start >= self.window_end:
            raise ValueError(f"window_start = {self.window_start} leaves no rank before window_end = {self.window_end}")
        return self

    @property
    def limit(self) -> float | None:
        """The rule's number: as given, else the source's; None for a rule that has none."""
        return RULES[self.mask].usual if self.threshold is None else self.threshold


def identity(params: Params) -> dict[str, str]:
    """What shapes the learned mask's verdicts beyond the keyed parameters: the budget and the shipped prior."""
    if params.mask != "learned":
        return {}
    from stages.negatives.learned import PRIOR

    budget = f"{params.negatives} negatives, {params.max_false_negatives} false"
    return {"budget": budget, "prior": file_digest(PRIOR)}


def run(params: Params, inputs: Mapping[str, Path], out: Path, tools: Tools) -> Summary:
    """Write verdicts.parquet: a verdict and a reason for each candidate and each curated negative."""
    from stages.negatives.suspects import Suspects
    from stages.retrieval.encode import Vectors

    candidates = contracts.scan_table(inputs["candidates"], contracts.CANDIDATES)
    judged = contracts.scan_table(inputs["judged"], contracts.JUDGED)
    queries = contracts.read_table(inputs["queries"], contracts.QUERIES, ["query_id", "query"])
    answers = contracts.read_table(inputs["answers"], contracts.ANSWERS)
    truth = Truth(
        positives=known.united_positives(queries, judged.select("query_id", "doc_id", "relevance").collect()),
        keys=text_keys(inputs["corpus"]),
        needles=known.usable_answers(answers if params.answers else answers.clear(), params.min_answer_chars),
    )
    forms = loose_forms(inputs["corpus"], tools.scratch / "loose.arrow") if len(truth.needles) else None
    vectorise = document_vectors(inputs["corpus"], Vectors(inputs["encoding"], tools.vectors))

    def flagged_blocks() -> Iterator[pl.DataFrame]:
        for block in query_blocks(ids, total, ROWS_A_BLOCK):
            rows, labels = of_block(candidates, block), of_block(judged, block)
            yield flagged(params.duplicate_similarity, rows, labels, truth, vectorise, forms)

    counts: Counter[str] = Counter()
    total = pq.read_metadata(inputs["candidates"]).num_rows
    ids = queries["query_id"].sort()
    rule, learned = params, None
    blocks: Iterable[pl.DataFrame] = flagged_blocks()
    if params.mask == "learned":
        suspects = Suspects(inputs, Vectors(inputs["encoding"], tools.vectors), vectorise, tools.progress)
        learned = suspects.summary
        if suspects.unfit:
            tools.progress.say(f"the learned mask can't be trusted here, so perc is used: {suspects.unfit}")
            rule = params.model_copy(update={"mask": "perc", "threshold": None})
        else:
            room, share = params.negatives, params.max_false_negatives
            blocks, found = suspects.settled(flagged_blocks(), room, share, tools.scratch)
            learned |= found
    with pq.ParquetWriter(out / "verdicts.parquet", contracts.VERDICTS, compression="zstd") as writer:
        for rows in blocks:
            verdicts = decided(rule, rows, of_queries(judged, rows))
            writer.write_table(contracts.to_arrow(verdicts.drop("contradicted"), contracts.VERDICTS))
            counts += count(verdicts)
            tools.progress.advance(min(counts["queries"], len(ids)), len(ids), "queries")
    summary = summarise(rule, counts, len(ids)) | ({"learned": learned} if learned else {})
    for line in warnings(summary):
        tools.progress.say(line)
    return summary


@dataclass(frozen=True)
class Truth:
    """What is known of the whole collection before any score is looked at."""

    positives: pl.DataFrame
    """query_id, doc_id, own: `known.united_positives`."""
    keys: pl.DataFrame
    """doc_id, text_key: `documents.text_keys`."""
    needles: pl.DataFrame
    """query_id, needle: `known.usable_answers`."""


def flagged(
    duplicate_similarity: float,
    candidates: pl.DataFrame,
    judged: pl.DataFrame,
    truth: Truth,
    vectorise: known.Vectorise,
    forms: pa.Table | None = None,
) -> pl.DataFrame:
    """Some queries' candidates and curated negatives with all that speaks for or against them but the rule.

    `candidates` and `judged` hold all rows of these queries, as their contracts say; `forms` (doc_id, loose) is needed
    where `truth.needles` has rows. Columns: those of CANDIDATES, own (of `known.united_positives`), curated,
    same_text, contains_answer (null where not), positive_similarity and near_duplicate.
    """
    pair = ["query_id", "doc_id"]
    curated = judged.filter(pl.col("relevance") == 0).select(*pair, "score", curated=pl.lit(True))
    missing = curated.join(candidates, on=pair, how="anti").select(
        *pair, source=pl.lit("curated"), rank=pl.lit(0, pl.Int32), score="score"
    )
    rows = pl.concat([candidates.select(missing.columns), missing])
    positives = truth.positives.join(rows.select("query_id").unique(), on="query_id", how="semi")
    rows = known.positive_similarity(rows, positives, vectorise)
    rows = rows.join(positives, on=pair, how="left").join(curated.drop("score"), on=pair, how="left")
    texts = positives.join(truth.keys, on="doc_id").select("query_id", "text_key", same_text=pl.lit(True)).unique()
    rows = rows.join(truth.keys, on="doc_id", how="left").join(texts, on=["query_id", "text_key"], how="left")
    if len(truth.needles) and forms is not None:
        asked = rows.filter(pl.col("own").is_null() & pl.col("curated").is_null())
        asked = asked.join(truth.needles, on="query_id", how="semi")
        wanted = asked["doc_id"].unique().to_arrow()
        texts_of = forms.filter(pc.is_in(forms["doc_id"], wanted))
        holding = known.containing_answer(asked, truth.needles, pl.DataFrame(pl.from_arrow(texts_of)))
        rows = rows.join(holding.with_columns(contains_answer=pl.lit(True)), on=pair, how="left")
    else:
        rows = rows.with_columns(contains_answer=pl.lit(None, pl.Boolean))
    return rows.with_columns(
        near_duplicate=pl.col("positive_similarity") >= pl.lit(duplicate_similarity, pl.Float32)
    ).drop("text_key")


def decided(params: Params, rows: pl.DataFrame, judged: pl.DataFrame) -> pl.DataFrame:
    """The verdicts on `rows` (of `flagged`, all of their queries): the columns of VERDICTS, and `contradicted`.

    `judged` holds these queries' rows of JUDGED. The learned mask has put its threshold and `rule` there before.
    `contradicted` marks curated negatives that gave way to a known positive.
    """
    held = rows.select("threshold", "rule") if params.mask == "learned" else None
    rows = rules.apply(params.mask, params.limit, (params.window_start, params.window_end), rows, judged)
    if held is not None:
        rows = rows.with_columns(held)
    rows = rows.with_columns(known_positive=pl.col("own"), repeated_question=pl.col("own").not_())
    found = [name for name in contracts.VERDICTS.names if name in rows.columns]
    return (
        rows.with_columns(
            verdict=pl.coalesce(*(pl.when(flag).then(pl.lit(v)) for flag, v in PRECEDENCE), pl.lit(NEGATIVE)),
            reason=pl.coalesce(
                *(pl.when(flag).then(pl.lit(params.mask if flag == RULE else flag)) for flag, _ in PRECEDENCE),
                pl.lit("kept"),
            ),
        )
        .with_columns(contradicted=pl.col("curated").fill_null(False) & (pl.col("verdict") == IGNORED))
        .sort("query_id", "rank", "doc_id", "source")
        .select(*found, "verdict", "reason", "contradicted")
    )


def of_queries(table: pl.LazyFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows of `table` that belong to the queries of `rows`."""
    return of_block(table, rows["query_id"].unique().sort()) if len(rows) else table.clear().collect()


def count(verdicts: pl.DataFrame) -> Counter[str]:
    """What a block adds to the summary."""
    counts: Counter[str] = Counter(queries=verdicts["query_id"].n_unique(), rows=len(verdicts))
    for reason, rows in verdicts.group_by("reason").len().iter_rows():
        counts[reason] = rows
    counts["added"] = verdicts.filter(pl.col("source") == "curated").height
    counts["contradicted"] = int(verdicts["contradicted"].sum())
    counts["filled"] = verdicts.filter(pl.col("verdict") == NEGATIVE)["query_id"].n_unique()
    counts["anchorless"] = verdicts.filter(pl.col("reason") == "no_positive")["query_id"].n_unique()
    return counts


def summarise(params: Params, counts: Mapping[str, int], queries: int) -> Summary:
    """The block counts as the stage's summary; verdicts: verdict -> reason -> candidates, reasons by precedence."""
    order = [*((params.mask if flag == RULE else flag, verdict) for flag, verdict in PRECEDENCE), ("kept", NEGATIVE)]
    return {
        "rule": params.mask,
        "threshold": params.limit,
        "queries": queries,
        "candidates": counts["rows"] - counts["added"],
        "verdicts": {
            wanted: {reason: counts[reason] for reason, verdict in order if verdict == wanted and counts[reason]}
            for wanted in (NEGATIVE, POSITIVE, IGNORED)
        },
        "curated_added": counts["added"],
        "curated_contradicted": counts["contradicted"],
        "queries_without_positive": counts["anchorless"],
        "queries_without_negative": queries - counts["filled"],
    }


def warnings(summary: Summary) -> list[str]:
    """The lines that a person should read."""
    lines = []
    if n := summary["curated_contradicted"]:
        lines.append(f"{n} curated negatives contradict a known positive (equal text or restated question): ignored")
    if n := summary["queries_without_positive"]:
        lines.append(f"{n} queries have no positive, so {summary['rule']} has nothing to measure from: no negatives")
    return lines

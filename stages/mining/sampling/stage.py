"""Compose: choose N negatives a query among those that the mask let through, and write them for trainers.

Curated negatives come first. The rest is `top` (the hardest: highest score), `random` (every survivor alike), `simans`
(drawn, those near the positive's score most), `quota` (parts from the head, the middle third and anywhere), or without
any model `slices` (other rows' documents). What nearly equals a negative that is taken is passed over.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import polars as pl
import pyarrow.parquet as pq
from pydantic import field_validator, model_validator

from stages.core import schemas
from stages.core.errors import InputError
from stages.core.hashing import seed_option
from stages.core.params import Params as BaseParams
from stages.core.params import option
from stages.core.schemas import Summary, Tools
from stages.mining.audit import checks
from stages.mining.risk_budget import negatives_option
from stages.mining.sampling import quotas
from stages.mining.sampling.random_baseline import Slices
from stages.mining.sampling.sampler import Block, Composer
from stages.mining.sampling.statistics import Tally, summarise

VERSION = 4

TEXTS = 256 << 20
"""Bytes of documents held at once; bounds memory and changes no result."""
BESIDE = 500
"""Bytes that are held for each beside its text: ids, scores, features."""


class Params(BaseParams):
    """How many negatives a query gets, and which."""

    negatives: int = negatives_option()
    sampling: Literal["top", "random", "simans", "quota", "slices"] = option(
        "top",
        "Which survivors are taken. top: those that the retriever scores highest; random: any, by a seeded draw; "
        "simans: by a draw that prefers scores near the positive's (SimANS); quota: parts from the head, the middle "
        "and anywhere; slices: other rows' documents without any model (MasteringRAG's build_qa_samples), for which "
        "nothing is encoded, searched or masked, so no curated negative comes first: a baseline. (Training a new head "
        "learns the retriever's scores first: distill_epochs = 0 leaves that out too.)",
    )
    simans_a: float = option(
        0.5,
        "simans: a of the weights exp(-a (score - positive's - b)^2). The authors' 0.5 is for inner products that lie "
        "tens apart; for cosines take some 100, or all weights are alike.",
        ge=0,
        allow_inf_nan=False,
    )
    simans_b: float = option(
        0.0,
        "simans: b, how far above the (lowest) positive's score the preferred one lies; below it where negative. The "
        "authors took 0, and -1 for NQ and TriviaQA.",
        allow_inf_nan=False,
    )
    quota_head: int = option(3, "quota: parts of the negatives that come from the highest-scored survivors.", ge=0)
    quota_middle: int = option(2, "quota: parts drawn from the middle third of the survivors.", ge=0)
    quota_random: int = option(2, "quota: parts drawn from all that is left.", ge=0)
    quota_sources: tuple[str, ...] = option(
        (),
        "Parts of the negatives by the retriever that found them, as in dense=4 and bm25=2. A pair found by several "
        "counts for the first that has room; what a source lacks goes to the others by score. Left out: no parts.",
    )
    slice: int = option(16, "slices: negatives a line.", ge=1)
    slices: int = option(5, "slices: lines a query, each with other negatives.", ge=1)
    same: Literal["none", "category"] = option(
        "none",
        "category: documents of a category that a positive of the query is of come before all others: harder than "
        "random ones, easier than the top. A query whose positives have no category has no preference.",
    )
    # Looked at with MiniLM on medical FAQs, see mask.duplicate_similarity.
    thin_similarity: float = option(
        0.98,
        "Of two negatives of a query whose vectors have at least this cosine only the first is taken (curated ones "
        "always); above 1 switches it off.",
        gt=0,
        le=2,
    )
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
        "Leave out of the training file the positives that `prep audit` lists as buried, outscored or contradicting; "
        "repeat it for several. With positive_weight they count less instead. They stay positives everywhere else: in "
        "the judgements, the mask and the evaluation.",
    )
    positive_weight: float = option(
        0.0,
        "What the positives count in training that drop_positives names: 0, they are left out; 0.3, three tenths of "
        "another's (pos_weights in mined.jsonl).",
        ge=0,
        lt=1,
    )
    audit_rank: int = checks.rank_option()
    seed: int = seed_option()

    @field_validator("quota_sources")
    @classmethod
    def _parts(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        quotas.parsed(given)
        return given

    @field_validator("drop_positives", mode="before")
    @classmethod
    def _findings(cls, given: Any) -> Any:
        given = ((given,) if given else ()) if isinstance(given, str) else given
        if unknown := [name for name in given if name not in checks.FINDINGS]:
            raise ValueError(f"{unknown[0]!r} is no finding of the audit; take some of {', '.join(checks.FINDINGS)}")
        return tuple(name for name in checks.FINDINGS if name in given)

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.quota_head + self.quota_middle + self.quota_random == 0:
            raise ValueError("quota_head, quota_middle and quota_random are all 0: give at least one part")
        given = {"same": self.same != "none", "hub_cap": self.hub_cap, "quota_sources": self.quota_sources}
        given["drop_positives"] = self.drop_positives
        if self.sampling == "slices" and (vain := [name for name, value in given.items() if value]):
            raise ValueError(f"sampling = 'slices' knows no scores and no candidates: remove {', '.join(vain)}")
        if self.positive_weight and not self.drop_positives:
            raise ValueError("positive_weight is that of the positives that drop_positives names, and it names none")
        return self

    @property
    def quotas(self) -> list[tuple[str, int]]:
        """The parts of each source, in the order given."""
        return quotas.parsed(self.quota_sources)

    @property
    def asked(self) -> int:
        """Negatives wanted of each query, over all its lines."""
        return self.slice * self.slices if self.sampling == "slices" else self.negatives


def unneeded(params: Params) -> frozenset[str]:
    """The inputs that these parameters leave unread: what makes them need not run."""
    if params.sampling == "slices":
        return frozenset(
            {"pairs/decided.parquet", "search/judged.parquet", "mask/verdicts.parquet", "encode/encoding.json"}
        )
    vectors = {"encode/encoding.json"} if params.thin_similarity > 1 and not params.drop_positives else set()
    decided = set() if params.drop_positives else {"pairs/decided.parquet"}
    return frozenset({"pairs/qrels.parquet"} | vectors | decided)


def identity(params: Params) -> dict[str, str]:
    """The audit's parameter, where something is dropped by it."""
    return {"audit_rank": str(params.audit_rank)} if "buried" in params.drop_positives else {}


def run(params: Params, inputs: Mapping[str, Path], out: Path, tools: Tools) -> Summary:
    """Write mined.jsonl: one line a train query, in query_id order, as FlagEmbedding and its loaders read it."""
    queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "query", "split"])
    queries = queries.filter(pl.col("split") == "train").select("query_id", "query").sort("query_id")
    corpus = schemas.scan_documents(inputs["corpus"])
    composer = (
        Slices(params, queries, inputs) if params.sampling == "slices" else Composer(params, queries, inputs, tools)
    )
    tally = Tally(params.asked)
    with (out / "mined.jsonl").open("wb") as file:
        for blocks in gathered(composer.blocks(), texts_at_once(inputs["corpus"])):
            asked, positives, chosen = (
                pl.concat(getattr(block, side) for block in blocks) for side in ("asked", "positives", "chosen")
            )
            wanted = pl.concat([positives["doc_id"], chosen["doc_id"]]).unique()
            texts = corpus.filter(pl.col("doc_id").is_in(wanted.implode())).collect()
            lines(asked, positives, chosen, texts).write_ndjson(file)
            for block in blocks:
                tally.add(block)
            tools.progress.advance(tally.n["train"], len(queries), "queries")
    if not tally.n["written"]:
        raise InputError(_nothing(tally.n))
    summary = summarise(tally, params.same == "category", params.drop_positives, params.positive_weight) | composer.told
    if params.hub_cap and (line := crowded(params, tally, int(corpus.select(pl.len()).collect().item()))):
        tools.progress.say(line)
    if params.same == "category" and tally.n["without_category"] == tally.n["with_positive"]:
        tools.progress.say("same = category: no positive has a category, so no negative was preferred")
    return summary


def texts_at_once(corpus: Path) -> int:
    """How many of a corpus' documents fit into TEXTS, going by their mean, with what a line holds of each beside it."""
    about = pq.read_metadata(corpus)
    read = [about.schema.names.index(name) for name in ("title", "text")]
    groups = [about.row_group(group) for group in range(about.num_row_groups)]
    size = sum(group.column(column).total_uncompressed_size for group in groups for column in read)
    return int(TEXTS // (size / max(about.num_rows, 1) + BESIDE))


def gathered(blocks: Iterable[Block], most: int) -> Iterator[list[Block]]:
    """The blocks, as many at a time as name about `most` documents: the corpus is read once for these."""
    held: list[Block] = []
    named = 0
    for block in blocks:
        held.append(block)
        named += len(block.positives) + len(block.chosen)
        if named >= most:
            yield held
            held, named = [], 0
    if held:
        yield held


def lines(asked: pl.DataFrame, positives: pl.DataFrame, chosen: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    """One row a query and line with both sides: query_id, query, pos, neg, pos_ids, neg_ids, pos_scores, neg_scores.

    Scores are left out where `chosen` has none; pos_weights and neg_weights come last where `positives` and `chosen`
    have `weight`.
    """
    scored = ["score"] if "score" in chosen.columns else []
    sides = [
        side.join(texts, on="doc_id", how="left", maintain_order="left")
        .group_by(by, maintain_order=True)
        .agg(
            pl.col("text").alias(name),
            pl.col("doc_id").alias(f"{name}_ids"),
            *(pl.col(figure).alias(f"{name}_{figure}s") for figure in [*scored, *weighted(side)]),
        )
        for name, side, by in (("pos", positives, ["query_id"]), ("neg", chosen, ["query_id", "line"]))
    ]
    both = asked.join(sides[0], on="query_id").join(sides[1], on="query_id").sort("query_id", "line")
    figures = ["pos_scores", "neg_scores"] if scored else []
    figures += [f"{name}_weights" for name, side in (("pos", positives), ("neg", chosen)) if weighted(side)]
    return both.select("query_id", "query", "pos", "neg", "pos_ids", "neg_ids", *figures)


def weighted(side: pl.DataFrame) -> list[str]:
    """The column of weights, where there is one."""
    return [name for name in side.columns if name == "weight"]


def crowded(params: Params, tally: Tally, documents: int) -> str | None:
    """What to say where so many documents can't be all the negatives that are wanted, as often as hub_cap lets them."""
    wanted = tally.asked * tally.n["with_positive"] - tally.bands["curated"]  # these know no cap
    most = documents * params.hub_cap
    if most >= wanted:
        return None
    none = tally.n["with_positive"] - tally.n["written"]
    return (
        f"hub_cap = {params.hub_cap} can't be met: {documents:,} documents x {params.hub_cap} are at most {most:,} "
        f"negatives, and {wanted:,} are wanted, which takes hub_cap = {-(-wanted // documents)} at least. Of "
        f"{tally.n['with_positive']:,} questions {tally.n['short']:,} have fewer than {tally.asked}, {none:,} none"
    )


def _nothing(tally: Mapping[str, int]) -> str:
    if not tally["train"]:
        return "no question is in train, so there is nothing to mine for. Give more questions, or smaller dev and test."
    return (
        f"not one negative is left for the {tally['train']:,} train questions "
        f"({tally['train'] - tally['with_positive']:,} have no positive). Add documents (--corpus), or choose a mask "
        "that leaves more: `prep show QUESTION` says why each candidate was set aside."
    )

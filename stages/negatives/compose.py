"""Compose: choose N negatives a query among those that the mask let through, and write them for trainers.

Curated negatives come first. The rest is `top` (the hardest: highest score), `random` (every survivor alike) or `quota`
(parts from the head, the middle third and anywhere). A draw orders documents by a hash of (seed, query_id, doc_id): the
choice does not depend on other queries, nor on where a document stands, so one that comes or goes changes one place.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import polars as pl
import pyarrow.parquet as pq
from pydantic import field_validator, model_validator

from stages import contracts
from stages.contracts import Summary, Tools
from stages.draw import draw
from stages.errors import InputError
from stages.negatives import audit
from stages.negatives.blocks import of_block, query_blocks
from stages.negatives.budget import negatives_option
from stages.negatives.documents import text_keys
from stages.params import Params as BaseParams
from stages.params import option

VERSION = 1

ROWS_A_BLOCK = 1_000_000
"""Verdicts looked at together; bounds memory and changes no result."""


class Params(BaseParams):
    """How many negatives a query gets, and which."""

    negatives: int = negatives_option()
    sampling: Literal["top", "random", "quota"] = option(
        "top",
        "Which survivors are taken. top: those that the retriever scores highest; random: any, by a seeded draw; "
        "quota: parts from the head, the middle and anywhere.",
    )
    quota_head: int = option(3, "quota: parts of the negatives that come from the highest-scored survivors.", ge=0)
    quota_middle: int = option(2, "quota: parts drawn from the middle third of the survivors.", ge=0)
    quota_random: int = option(2, "quota: parts drawn from all that is left.", ge=0)
    drop_positives: tuple[str, ...] = option(
        (),
        "Leave out of the training file the positives that `prep audit` lists as buried, outscored or contradicting; "
        "repeat it for several. They stay positives everywhere else: in the judgements, the mask and the evaluation.",
    )
    audit_rank: int = audit.rank_option()
    seed: int = option(0, "Seed of the draws, which also depend on the query's id and never on its position.", ge=0)

    @field_validator("drop_positives", mode="before")
    @classmethod
    def _findings(cls, given: Any) -> Any:
        given = ((given,) if given else ()) if isinstance(given, str) else given
        if unknown := [name for name in given if name not in audit.FINDINGS]:
            raise ValueError(f"{unknown[0]!r} is no finding of the audit; take some of {', '.join(audit.FINDINGS)}")
        return tuple(name for name in audit.FINDINGS if name in given)

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.quota_head + self.quota_middle + self.quota_random == 0:
            raise ValueError("quota_head, quota_middle and quota_random are all 0: give at least one part")
        return self


def identity(params: Params) -> dict[str, str]:
    """The audit's parameter, where something is dropped by it."""
    return {"audit_rank": str(params.audit_rank)} if "buried" in params.drop_positives else {}


def run(params: Params, inputs: Mapping[str, Path], out: Path, tools: Tools) -> Summary:
    """Write mined.jsonl: one line a train query, in query_id order, as FlagEmbedding and its loaders read it."""
    queries = contracts.read_table(inputs["queries"], contracts.QUERIES, ["query_id", "query", "split"])
    queries = queries.filter(pl.col("split") == "train").select("query_id", "query").sort("query_id")
    corpus = contracts.scan_documents(inputs["corpus"])
    judged = contracts.scan_table(inputs["judged"], contracts.JUDGED)
    verdicts = contracts.scan_table(inputs["verdicts"], contracts.VERDICTS)
    survivors = verdicts.filter(pl.col("verdict") == "negative").select("query_id", "doc_id", "score", "reason")
    keys = text_keys(inputs["corpus"])
    dropped = pl.DataFrame(schema=audit.FOUND)
    if params.drop_positives:
        dropped, _ = audit.find(inputs, tools.vectors, params.audit_rank, params.negatives, params.drop_positives)
    tally: Counter[str] = Counter()
    hardness = 0.0
    rows = pq.read_metadata(inputs["verdicts"]).num_rows
    with (out / "mined.jsonl").open("wb") as file:
        for block in query_blocks(queries["query_id"], rows, ROWS_A_BLOCK):
            asked = queries.filter(pl.col("query_id").is_in(block.implode()))
            mine = [
                t.join(asked, on="query_id", how="semi") for t in (of_block(judged, block), of_block(survivors, block))
            ]
            positives = pick_positives(mine[0].join(dropped, on=["query_id", "doc_id"], how="anti"), keys)
            chosen = choose(params, mine[1], positives, keys)
            wanted = pl.concat([positives["doc_id"], chosen["doc_id"]]).unique()
            texts = corpus.filter(pl.col("doc_id").is_in(wanted.implode())).collect()
            lines(asked, positives, chosen, texts).write_ndjson(file)
            tally += count(params, asked, positives, chosen) + count_dropped(mine[0], positives, dropped)
            hardness += float(chosen["score"].cast(pl.Float64).sum())
            tools.progress.advance(tally["train"], len(queries), "queries")
    if not tally["written"]:
        raise InputError(_nothing(tally))
    return summarise(params, tally, hardness)


def _nothing(tally: Mapping[str, int]) -> str:
    if not tally["train"]:
        return "no question is in train, so there is nothing to mine for. Give more questions, or smaller dev and test."
    return (
        f"not one negative is left for the {tally['train']:,} train questions "
        f"({tally['train'] - tally['with_positive']:,} have no positive). Add documents (--corpus), or choose a mask "
        "that leaves more: `prep show QUESTION` says why each candidate was set aside."
    )


def pick_positives(judged: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """query_id, doc_id, score, text_key of the positives, best score first (ties by doc_id), each text once."""
    found = judged.filter(pl.col("relevance") > 0).select("query_id", "doc_id", "score").join(keys, on="doc_id")
    ordered = found.sort("query_id", "score", "doc_id", descending=[False, True, False])
    return ordered.unique(["query_id", "text_key"], keep="first", maintain_order=True)


def choose(params: Params, survivors: pl.DataFrame, positives: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """query_id, doc_id, score, band of the chosen negatives: curated first, then by falling score (ties by doc_id).

    `survivors`: query_id, doc_id, score, reason of negative verdicts; `positives` (query_id, text_key) are kept out;
    `keys`: doc_id, text_key. A document or a text comes once a query. Queries without a positive get nothing.
    """
    pool = survivors.join(positives.select("query_id").unique(), on="query_id", how="semi").join(keys, on="doc_id")
    pool = pool.join(positives, on=["query_id", "text_key"], how="anti")
    pool = pool.with_columns(curated=pl.col("reason") == "curated")
    pool = pool.sort("query_id", "curated", "score", "doc_id", descending=[False, True, True, False])
    pool = pool.unique(["query_id", "text_key"], keep="first", maintain_order=True)
    place = pl.int_range(pl.len()).over("query_id", "curated")
    size = pl.len().over("query_id", "curated")
    pool = pool.with_columns(draw=_draw(params, pool), place=place, size=size)
    curated = pl.col("curated").sum().over("query_id")
    pool = pool.with_columns(room=(params.negatives - curated).clip(lower_bound=0))
    banded = pool.with_columns(band=pl.when("curated").then(pl.lit("curated")).otherwise(pl.lit(params.sampling)))
    if params.sampling == "quota":
        banded = _quota_bands(params, pool)
    # Within a band: the head by score, what is drawn by its hash.
    drawn = pl.col("band").is_in(["middle", "random"])
    banded = banded.with_columns(
        turn=pl.col("band").replace_strict(
            {"curated": 0, "head": 1, "top": 1, "middle": 2, "random": 3}, return_dtype=pl.Int8
        ),
        within=pl.when(drawn).then(pl.col("draw")).otherwise(pl.col("place").cast(pl.UInt64)),
    )
    taken = banded.sort("query_id", "turn", "within", "doc_id").group_by("query_id", maintain_order=True)
    chosen = taken.head(params.negatives)
    return chosen.sort("query_id", "curated", "score", "doc_id", descending=[False, True, True, False]).select(
        "query_id", "doc_id", "score", "band"
    )


def _quota_bands(params: Params, pool: pl.DataFrame) -> pl.DataFrame:
    """`pool` with band: its first `head` places, `middle` drawn from its middle third, the rest open to `random`."""
    sizes = pool.select("room").unique()["room"].to_list()
    shares = pl.DataFrame(
        [(room, *shares_of(room, (params.quota_head, params.quota_middle, params.quota_random))[:2]) for room in sizes],
        schema={"room": pool.schema["room"], "head": pl.Int64, "middle": pl.Int64},
        orient="row",
    )
    pool = pool.join(shares, on="room", how="left", maintain_order="left")
    ours = ~pl.col("curated")
    head = ours & (pl.col("place") < pl.col("head"))
    third = ours & ~head & (pl.col("place") * 3 >= pl.col("size")) & (pl.col("place") * 3 < pl.col("size") * 2)
    pool = pool.with_columns(zone=pl.when("curated").then(0).when(head).then(1).when(third).then(2).otherwise(3))
    order = pl.col("draw").rank("ordinal").over("query_id", "zone")
    middle = (pl.col("zone") == 2) & (order <= pl.col("middle"))
    return pool.with_columns(
        band=pl.when("curated")
        .then(pl.lit("curated"))
        .when(head)
        .then(pl.lit("head"))
        .when(middle)
        .then(pl.lit("middle"))
        .otherwise(pl.lit("random"))
    )


def shares_of(total: int, parts: tuple[int, ...]) -> list[int]:
    """`total` in proportion to `parts`, by largest remainder; of equal remainders the earlier part gets the unit."""
    whole = [total * part // sum(parts) for part in parts]
    rest = sorted(range(len(parts)), key=lambda i: (-(total * parts[i] % sum(parts)), i))
    for i in rest[: total - sum(whole)]:
        whole[i] += 1
    return whole


def _draw(params: Params, pool: pl.DataFrame) -> pl.Series:
    if params.sampling == "top":
        return pl.Series("draw", [0], dtype=pl.UInt64).new_from_index(0, len(pool))
    pairs = pool.select("query_id", "doc_id").iter_rows()
    values = [draw(params.seed, "compose", f"{query_id}:{doc_id}") for query_id, doc_id in pairs]
    return pl.Series("draw", values, dtype=pl.UInt64)


def lines(asked: pl.DataFrame, positives: pl.DataFrame, chosen: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    """One row a query that has both sides: query_id, query, pos, neg, pos_ids, neg_ids, pos_scores, neg_scores."""
    sides = [
        side.join(texts, on="doc_id", how="left", maintain_order="left")
        .group_by("query_id", maintain_order=True)
        .agg(pl.col("text").alias(name), pl.col("doc_id").alias(f"{name}_ids"), pl.col("score").alias(f"{name}_scores"))
        for name, side in (("pos", positives), ("neg", chosen))
    ]
    both = asked.join(sides[0], on="query_id").join(sides[1], on="query_id").sort("query_id")
    return both.select("query_id", "query", "pos", "neg", "pos_ids", "neg_ids", "pos_scores", "neg_scores")


def count(params: Params, asked: pl.DataFrame, positives: pl.DataFrame, chosen: pl.DataFrame) -> Counter[str]:
    """What a block adds to the summary."""
    sizes = chosen.group_by("query_id").len()["len"]
    tally: Counter[str] = Counter(
        train=len(asked), with_positive=positives["query_id"].n_unique(), written=len(sizes), negatives=len(chosen)
    )
    tally["positives"] = positives.join(chosen, on="query_id", how="semi").height
    tally["short"] = int((sizes < params.negatives).sum())
    for band, n in chosen.group_by("band").len().iter_rows():
        tally[f"band/{band}"] = n
    return tally


def count_dropped(judged: pl.DataFrame, positives: pl.DataFrame, dropped: pl.DataFrame) -> Counter[str]:
    """What a block adds to the summary of what the audit drops: positives by finding, and queries with none left."""
    out = judged.filter(pl.col("relevance") > 0).join(dropped, on=["query_id", "doc_id"])
    tally: Counter[str] = Counter({f"dropped/{name}": n for name, n in out.group_by("finding").len().iter_rows()})
    tally["emptied"] = out.join(positives, on="query_id", how="anti")["query_id"].n_unique()
    return tally


def summarise(params: Params, tally: Mapping[str, int], hardness: float) -> Summary:
    """The block counts as the stage's summary.

    `fill` is the share of the asked-for negatives that was found, over all train queries with a positive; `hardness`
    the mean retriever score of the negatives written; None where there is nothing to take a mean of.
    """
    asked = params.negatives * tally["with_positive"]
    written, negatives = tally["written"], tally["negatives"]
    summary: Summary = {
        "queries": written,
        "positives": tally["positives"],
        "negatives": negatives,
        "asked": params.negatives,
        "negatives_per_query": round(negatives / written, 4) if written else None,
        "fill": round(negatives / asked, 4) if asked else None,
        "short": tally["short"],
        "bands": {key.partition("/")[2]: tally[key] for key in sorted(tally) if key.startswith("band/")},
        "hardness": round(hardness / negatives, 4) if negatives else None,
        "left_out": {
            "no positive": tally["train"] - tally["with_positive"] - tally["emptied"],
            "no negatives": tally["with_positive"] - written,
        },
    }
    if params.drop_positives:
        summary["dropped"] = {name: tally[f"dropped/{name}"] for name in params.drop_positives}
        summary["left_out"]["all positives dropped"] = tally["emptied"]
    return summary

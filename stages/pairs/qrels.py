"""What rows say about (question, document) pairs, settled: one text an id, no contradictions, no question without a
positive. Pure functions on frames of 64-bit keys; a row is one number (see `stages.pairs.rejects.ROW_BITS`)."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from stages.core.errors import InputError

MANY, FEW = 0.05, 5
"""A recognised id column holds no question ids where over this share of the rows, and more than a few, contradict."""

PARTLY = "partly contradictory"
"""The reason of a row of which some judgements hold all the same."""


@dataclass(frozen=True)
class Settled:
    """Judgements that hold, documents that stand in the corpus without one, and rows set aside (row, reason)."""

    judged: pl.DataFrame
    listed: pl.DataFrame
    rejected: pl.DataFrame
    ids_dropped: bool


def settle(judged: pl.DataFrame, listed: pl.DataFrame, trust_ids: bool) -> Settled:
    """Settle `judged` (row, q, d, relevance, and where known id, document_id) and `listed` (row, d, document_id).

    - An id that stands for two texts belongs to the first row's; the others are set aside. Where `trust_ids` is not
      set and over 5 % of the rows (and over 5) would be, the column is no id, and is dropped (`ids_dropped`).
    - A pair judged relevant and not relevant is contradictory: none of its judgements holds.
    - A question without a positive is set aside, its rows with it.
    A row is rejected where none of its judgements is left; "partly contradictory" where some are.
    """
    rejected: list[pl.DataFrame] = []
    dropped = False
    if "id" in judged.columns:
        wrong = second_texts(judged, "id", "q")
        if not trust_ids and len(wrong) > max(FEW, MANY * judged["row"].n_unique()):
            judged, dropped = judged.drop("id"), True
        else:
            judged = judged.join(wrong, on="row", how="anti")
            rejected.append(wrong.with_columns(reason=pl.lit("id of another question")))
    given = [frame.select("row", "d", "document_id") for frame in (judged, listed) if "document_id" in frame.columns]
    if given:
        wrong = second_texts(pl.concat(given), "document_id", "d")
        judged, listed = (frame.join(wrong, on="row", how="anti") for frame in (judged, listed))
        rejected.append(wrong.with_columns(reason=pl.lit("id of another document")))
    judged, contradictory = without_contradictions(judged)
    rejected.append(contradictory)
    orphans = judged.filter(pl.col("relevance") == 0).select("q").unique()
    if len(orphans):
        orphans = orphans.join(judged.filter(pl.col("relevance") > 0), on="q", how="anti")
        lost = judged.join(orphans, on="q", how="semi").select("row").unique()
        judged = judged.join(orphans, on="q", how="anti")
        already = contradictory.select("row")
        rejected.append(lost.join(already, on="row", how="anti").with_columns(reason=pl.lit("no positive document")))
    late = pl.concat(rejected).unique("row", keep="first", maintain_order=True)
    partly = late.join(judged.select("row").unique(), on="row", how="semi").select("row")
    late = pl.concat(
        [
            late.join(partly, on="row", how="anti"),
            late.join(partly, on="row", how="semi").with_columns(reason=pl.lit(PARTLY)),
        ]
    )
    return Settled(judged, listed, late.sort("row"), dropped)


def second_texts(frame: pl.DataFrame, name: str, key: str) -> pl.DataFrame:
    """Rows whose id (column `name`) an earlier row gave to another text (column `key`)."""
    known = frame.filter(pl.col(name).is_not_null()).select("row", name, key)
    if known[name].hash().n_unique() == len(known):  # the usual case, at a fraction of the memory
        return pl.DataFrame(schema={"row": pl.Int64})
    several = known.group_by(name).agg(pl.col(key).n_unique()).filter(pl.col(key) > 1).select(name)
    if not len(several):
        return pl.DataFrame(schema={"row": pl.Int64})
    known = known.join(several, on=name, how="semi").sort("row", maintain_order=True)
    first = known.group_by(name, maintain_order=True).agg(pl.col(key).first().alias("first"))
    return known.join(first, on=name).filter(pl.col(key) != pl.col("first")).select("row").unique().sort("row")


def without_contradictions(judged: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Judgements without the pairs that are relevant in one row and not in another, and the rows that said so."""
    if not len(judged) or judged["relevance"].min() != 0:
        return judged, pl.DataFrame(schema={"row": pl.Int64, "reason": pl.String})
    pairs = judged.group_by("q", "d").agg(low=pl.col("relevance").min(), high=pl.col("relevance").max())
    both = pairs.filter((pl.col("low") == 0) & (pl.col("high") > 0)).select("q", "d")
    rows = judged.join(both, on=["q", "d"], how="semi").select("row").unique()
    return judged.join(both, on=["q", "d"], how="anti"), rows.with_columns(reason=pl.lit("contradictory"))


def final_ids(keys: pl.DataFrame, given: pl.DataFrame | None) -> pl.DataFrame:
    """An id for each text (`key`, `low`: the halves of its 128-bit hash): its smallest given id, else the hash.

    `given` holds (key, id), ids may be null. Returns (key, id, ...the other columns of `keys`), sorted by id.
    """
    frame = keys
    if given is not None:
        smallest = given.filter(pl.col("id").is_not_null()).group_by("key").agg(pl.col("id").min())
        frame = keys.join(smallest, on="key", how="left")
        missing = frame.filter(pl.col("id").is_null())
        named = frame.filter(pl.col("id").is_not_null())
        frame = pl.concat([named, missing.with_columns(id=_hex(missing)).select(named.columns)])
    else:
        frame = keys.with_columns(id=_hex(keys))
    frame = frame.sort("id")
    if frame["id"].n_unique() != len(frame):
        twice = frame.filter(pl.col("id").is_duplicated())["id"][0]
        raise InputError(f"the id {twice!r} is given to one text and is the hash of another: rename it")
    return frame


def _hex(keys: pl.DataFrame) -> pl.Series:
    both = np.stack([keys["key"].to_numpy(), keys["low"].to_numpy()], axis=1).astype(">u8").tobytes().hex()
    return pl.Series([both[i : i + 32] for i in range(0, len(both), 32)], dtype=pl.String)


def unique_keys(pieces: list[pl.DataFrame], key: str) -> pl.DataFrame:
    """One row a text from pieces that may repeat it; two texts of one 64-bit `key` (never seen) are refused."""
    frame = pl.concat(pieces).unique()
    if frame[key].n_unique() != len(frame) and frame[key].n_unique() != frame.select(key, "low").n_unique():
        raise InputError("two different texts have the same 64-bit hash; change one of them by a character")
    return frame

"""Merge duplicate documents. Models read title and text, so documents that share both are one. A text without a title
(a table of pairs beside a corpus) gets the title of the document with its id, else the only title of that text.

Pure functions on frames of 64-bit keys: `d` of title and text, `text` of the text (both are equal without a title).
"""

import polars as pl

from stages.pairs.split import find_components

_KEYS = {"key": pl.UInt64, "d": pl.UInt64}


def merge_duplicate_documents(
    keys: pl.DataFrame, qrels: pl.DataFrame, standalone_documents: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """`qrels` and `standalone_documents` (d, optionally document_id) with one `d` for each document, and the
    replacements (key, d).

    `keys` holds d and text of every document. Documents with the same text are merged if they share an id, or if one
    has no title and the text has only one title. Other documents with the same text and different titles are kept.
    """
    titled = keys.filter(pl.col("d") != pl.col("text")).select("d", "text")
    if not len(titled):
        return qrels, standalone_documents, pl.DataFrame(schema=_KEYS)
    with_ids = [
        frame.select("document_id", "d") for frame in (qrels, standalone_documents) if "document_id" in frame.columns
    ]
    no_ids = pl.DataFrame(schema={"document_id": pl.String, "d": pl.UInt64})
    titled_ids = pl.concat([no_ids, *with_ids]).drop_nulls().unique().join(titled, on="d")
    replacements = _merge_same_id(titled_ids)
    # a text that equals the title and text of another document already has its title
    titled_ids = _drop_titled_texts(replace_keys(titled_ids, replacements).unique(), titled)
    titles = _drop_titled_texts(replace_keys(titled, replacements).unique(), titled).filter(pl.len().over("text") == 1)
    replacements = pl.concat([replacements, titles.select(key="text", d="d")])
    qrels, standalone_documents = (
        replace_keys(_attach_to_titled_documents(frame, titled_ids), replacements)
        for frame in (qrels, standalone_documents)
    )
    return qrels, standalone_documents, replacements


def deduplicate_document_keys(keys: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """One row of `keys` (d, text, ...) for each d, and the d's that had several rows.

    The title A with the text B and the untitled text "A B" are one document to the models. It is kept with its title.
    """
    ambiguous_keys = keys.filter(pl.col("d").is_duplicated())["d"].unique()
    if len(ambiguous_keys):
        keys = keys.sort("d", pl.col("d") == pl.col("text"), "text").unique("d", keep="first", maintain_order=True)
    return keys, ambiguous_keys


def _merge_same_id(titled_ids: pl.DataFrame) -> pl.DataFrame:
    """Replacements (key, d) of titled documents (document_id, d, text) with the same text and id: the smallest d."""
    shared = titled_ids.filter(pl.len().over("document_id", "text") > 1)
    if not len(shared):
        return pl.DataFrame(schema=_KEYS)
    edges = shared.select(
        node=pl.col("d").rank("dense").cast(pl.Int64) - 1,
        value=pl.struct("document_id", "text").rank("dense").cast(pl.Int64),
    )
    keys = shared["d"].unique().sort()
    components = find_components(len(keys), [(edges["node"].to_numpy(), edges["value"].to_numpy())])
    frame = pl.DataFrame({"key": keys, "component": components})
    return frame.select("key", d=pl.col("key").min().over("component"))


def _drop_titled_texts(frame: pl.DataFrame, titled: pl.DataFrame) -> pl.DataFrame:
    return frame.join(titled, left_on="text", right_on="d", how="anti")


def _attach_to_titled_documents(frame: pl.DataFrame, titled_ids: pl.DataFrame) -> pl.DataFrame:
    """`frame` with the d of an untitled text replaced by that of the titled document with the same text and id."""
    if "document_id" not in frame.columns or not len(titled_ids):
        return frame
    targets = titled_ids.select("document_id", d="text", titled_d="d")
    joined = frame.join(targets, on=["document_id", "d"], how="left", maintain_order="left")
    return joined.with_columns(d=pl.coalesce("titled_d", "d")).drop("titled_d")


def replace_keys(frame: pl.DataFrame, replacements: pl.DataFrame) -> pl.DataFrame:
    """A frame with its `d` replaced by that of `replacements` (key, d)."""
    if not len(replacements):
        return frame
    renamed = replacements.select("key", new_d="d")
    joined = frame.join(renamed, left_on="d", right_on="key", how="left", maintain_order="left")
    return joined.with_columns(d=pl.coalesce("new_d", "d")).drop("new_d")

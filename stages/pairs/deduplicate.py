"""Which documents are one. Models read title and text, so these two say it; a text that came without its title, as in
a table of pairs next to a corpus, finds the title by the document's id, else by the text where only one title has it.
Pure functions on frames of 64-bit keys: `d` of what models read, `text` of the text alone (equal without a title)."""

import polars as pl

from stages.pairs.split import find_components

_KEYS = {"key": pl.UInt64, "d": pl.UInt64}


def merge_duplicate_documents(
    keys: pl.DataFrame, qrels: pl.DataFrame, standalone_documents: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """`qrels` and `standalone_documents` (d, document_id where known) with one `d` a document, and what became what:
    (key, d).

    `keys` holds d and text of every document. Documents of one text become one where they share an id, and where one
    has no title and only one title goes with the text. Other documents of one text with unequal titles stay apart.
    """
    titled = keys.filter(pl.col("d") != pl.col("text")).select("d", "text")
    if not len(titled):
        return qrels, standalone_documents, pl.DataFrame(schema=_KEYS)
    named = [
        frame.select("document_id", "d") for frame in (qrels, standalone_documents) if "document_id" in frame.columns
    ]
    nothing = pl.DataFrame(schema={"document_id": pl.String, "d": pl.UInt64})
    owners = pl.concat([nothing, *named]).drop_nulls().unique().join(titled, on="d")
    replacements = _merge_same_id(owners)
    # a text that reads as another's title and text is no text without a title
    owners = _drop_titled_texts(replace_keys(owners, replacements).unique(), titled)
    titles = _drop_titled_texts(replace_keys(titled, replacements).unique(), titled).filter(pl.len().over("text") == 1)
    replacements = pl.concat([replacements, titles.select(key="text", d="d")])
    qrels, standalone_documents = (
        replace_keys(_attach_to_titled_documents(frame, owners), replacements)
        for frame in (qrels, standalone_documents)
    )
    return qrels, standalone_documents, replacements


def deduplicate_document_keys(keys: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """One row of `keys` (d, text, ...) for each d, and the d's that had several.

    Models read "A B" for the text B of title A and for the text "A B" of none: one document, kept with its title.
    """
    ambiguous_keys = keys.filter(pl.col("d").is_duplicated())["d"].unique()
    if len(ambiguous_keys):
        keys = keys.sort("d", pl.col("d") == pl.col("text"), "text").unique("d", keep="first", maintain_order=True)
    return keys, ambiguous_keys


def _merge_same_id(owners: pl.DataFrame) -> pl.DataFrame:
    """Titled documents (document_id, d, text) of one text that share an id: (key, d), the smallest d for all."""
    shared = owners.filter(pl.len().over("document_id", "text") > 1)
    if not len(shared):
        return pl.DataFrame(schema=_KEYS)
    place = shared.select(
        node=pl.col("d").rank("dense").cast(pl.Int64) - 1,
        tie=pl.struct("document_id", "text").rank("dense").cast(pl.Int64),
    )
    members = shared["d"].unique().sort()
    found = find_components(len(members), [(place["node"].to_numpy(), place["tie"].to_numpy())])
    frame = pl.DataFrame({"key": members, "component": found})
    return frame.select("key", d=pl.col("key").min().over("component"))


def _drop_titled_texts(frame: pl.DataFrame, titled: pl.DataFrame) -> pl.DataFrame:
    return frame.join(titled, left_on="text", right_on="d", how="anti")


def _attach_to_titled_documents(frame: pl.DataFrame, owners: pl.DataFrame) -> pl.DataFrame:
    """Rows of a text without a title, given to the titled document of that text which has their id."""
    if "document_id" not in frame.columns or not len(owners):
        return frame
    owners = owners.select("document_id", owner="d", d="text")
    found = frame.join(owners, on=["document_id", "d"], how="left", maintain_order="left")
    return found.with_columns(d=pl.coalesce("owner", "d")).drop("owner")


def replace_keys(frame: pl.DataFrame, replacements: pl.DataFrame) -> pl.DataFrame:
    """A frame with its `d` replaced by that of `replacements` (key, d)."""
    if not len(replacements):
        return frame
    found = frame.join(
        replacements.rename({"d": "now"}), left_on="d", right_on="key", how="left", maintain_order="left"
    )
    return found.with_columns(d=pl.coalesce("now", "d")).drop("now")

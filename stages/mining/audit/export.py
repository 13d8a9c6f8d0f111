"""Findings of the audit for people: with the texts, counted, and as a file to mark and hand back as decisions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from stages.core import schemas
from stages.core.errors import InputError
from stages.mining.audit.checks import FINDINGS

ENDINGS = (".jsonl", ".csv", ".parquet")


def documented(found: pl.DataFrame, inputs: Mapping[str, Path]) -> pl.DataFrame:
    """`found` (of `audit.find`) with label (null: nobody decided yet), the question and the positive's text.

    query_id, doc_id and label come first: what `stages.pairs.label_overrides` reads. `inputs`: the files queries and
    corpus.
    """
    queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "query"])
    wanted = found["doc_id"].unique().implode()
    texts = schemas.scan_documents(inputs["corpus"]).filter(pl.col("doc_id").is_in(wanted)).collect()
    table = found.join(queries, on="query_id", how="left", maintain_order="left")
    table = table.join(texts, on="doc_id", how="left", maintain_order="left")
    label = pl.lit(None, pl.String).alias("label")
    return table.select("query_id", "doc_id", label, "finding", "query", "text", *found.columns[3:])


def counted(table: pl.DataFrame, positives: int) -> dict[str, Any]:
    """positives, flagged (each once, whatever it was found for), share of them, and counts by finding."""
    flagged = table.select("query_id", "doc_id").n_unique() if len(table) else 0
    counts = {name: int((table["finding"] == name).sum()) for name in FINDINGS}
    return {
        "positives": positives,
        "flagged": flagged,
        "share": round(flagged / positives, 6) if positives else 0.0,
        "counts": counts,
    }


def worst(table: pl.DataFrame, finding: str, top: int) -> list[dict[str, Any]]:
    """The first `top` rows of a finding, worst first."""
    return table.filter(pl.col("finding") == finding).head(top).to_dicts()


def check_ending(path: Path) -> None:
    """Raise `InputError` where the file's ending names no format that can be written."""
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"--out {path}: its ending names no format; take one of {', '.join(ENDINGS)}")


def write_findings(table: pl.DataFrame, path: Path) -> None:
    """Write CSV, JSON Lines or Parquet, by the file's ending; raises `InputError` where it can't be written."""
    check_ending(path)
    ending, partial = path.suffix.lower(), path.with_name(f".{path.name}.tmp")
    try:
        if ending == ".csv":
            table.write_csv(partial)
        elif ending == ".jsonl":
            table.write_ndjson(partial)
        else:
            table.write_parquet(partial)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"--out {path} can't be written: {error}") from error

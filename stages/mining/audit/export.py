"""Findings of the audit for review: join them with the texts, count them, and write them to a file to be labelled."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from stages.core import schemas
from stages.core.errors import InputError
from stages.mining.audit.checks import FINDING_KINDS

EXPORT_EXTENSIONS = (".jsonl", ".csv", ".parquet")


def build_review_table(findings: pl.DataFrame, inputs: Mapping[str, Path]) -> pl.DataFrame:
    """`findings` (of `checks.find_label_issues`) with an empty label column, the query and the positive's text.

    query_id, doc_id and label come first, as `stages.pairs.label_overrides` reads them. `inputs` holds the files
    queries and corpus.
    """
    queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "query"])
    doc_ids = findings["doc_id"].unique().implode()
    texts = schemas.scan_documents(inputs["corpus"]).filter(pl.col("doc_id").is_in(doc_ids)).collect()
    table = findings.join(queries, on="query_id", how="left", maintain_order="left")
    table = table.join(texts, on="doc_id", how="left", maintain_order="left")
    label = pl.lit(None, pl.String).alias("label")
    return table.select("query_id", "doc_id", label, "finding", "query", "text", *findings.columns[3:])


def count_findings(table: pl.DataFrame, n_positives: int) -> dict[str, Any]:
    """n_positives, n_flagged (each positive once), their share, and counts by finding."""
    flagged = table.select("query_id", "doc_id").n_unique() if len(table) else 0
    counts = {name: int((table["finding"] == name).sum()) for name in FINDING_KINDS}
    return {
        "n_positives": n_positives,
        "n_flagged": flagged,
        "share": round(flagged / n_positives, 6) if n_positives else 0.0,
        "counts": counts,
    }


def select_worst(table: pl.DataFrame, finding: str, top: int) -> list[dict[str, Any]]:
    """The first `top` rows of a finding, worst first."""
    return table.filter(pl.col("finding") == finding).head(top).to_dicts()


def check_extension(path: Path) -> None:
    """Raise `InputError` if the file's extension is not that of a format that can be written."""
    if path.suffix.lower() not in EXPORT_EXTENSIONS:
        raise InputError(f"--out {path}: its extension names no format; use one of {', '.join(EXPORT_EXTENSIONS)}")


def write_findings(table: pl.DataFrame, path: Path) -> None:
    """Write CSV, JSON Lines or Parquet, by the file's extension. Raises `InputError` if it can't be written."""
    check_extension(path)
    extension, temporary_path = path.suffix.lower(), path.with_name(f".{path.name}.tmp")
    try:
        if extension == ".csv":
            table.write_csv(temporary_path)
        elif extension == ".jsonl":
            table.write_ndjson(temporary_path)
        else:
            table.write_parquet(temporary_path)
        temporary_path.replace(path)
    except OSError as error:
        raise InputError(f"--out {path} can't be written: {error}") from error

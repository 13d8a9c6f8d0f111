"""Near duplicates of collections, and what finding them costs.

python -m tests.benchmarks.near_duplicates FOLDER...        clusters of the corpus.parquet of each folder
python -m tests.benchmarks.near_duplicates --gigabytes 0.3  processor time beside that of the whole pairs step
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from stages.core.context import NullProgress, StageContext
from stages.core.schemas import document_text, scan_documents
from stages.pairs import stage
from stages.pairs.near_duplicates import find_near_duplicates
from stages.pairs.params import Params
from tests.benchmarks.big_csv import write_table

ROWS = 1 << 14


def find_clusters(documents: pl.DataFrame) -> tuple[pl.DataFrame, float]:
    """The clusters, and the processor time that finding them took."""

    def read_batches() -> Iterator[pl.DataFrame]:
        return documents.iter_slices(ROWS)

    started = time.process_time()
    return find_near_duplicates(read_batches), time.process_time() - started


def compare_with_pairs(gigabytes: float) -> None:
    """Print the processor time of the pairs step on a made-up table, and the share of it that near duplicates take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder / "table.csv", int(gigabytes * 1e9), 1000, 2, True)
        (folder / "out").mkdir()
        context = StageContext(NullProgress(), folder / "scratch", folder, folder)
        started = time.process_time()
        stage.run(Params(tables=(str(folder / "table.csv"),)), {}, folder / "out", context)
        whole = time.process_time() - started
        _, took = find_clusters(scan_documents(folder / "out" / "corpus.parquet").collect())
    print(f"pairs step {whole:.1f} s of processor time, near duplicates {took:.1f} s: {took / (whole - took):.1%} more")


def main() -> None:
    """Run what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--gigabytes", type=float, default=0.0, help="size of a made-up CSV; 0: none")
    given = parser.parse_args()
    for folder in given.folders:
        corpus = pl.read_parquet(folder / "corpus.parquet")
        documents = corpus.select("doc_id", document_text(corpus.columns))
        found, took = find_clusters(documents)
        print(
            f"{folder.name}: {len(documents):,} documents, {found['cluster'].n_unique():,} clusters of {len(found):,}, "
            f"{took:.2f} s of processor time"
        )
    if given.gigabytes:
        compare_with_pairs(given.gigabytes)


if __name__ == "__main__":
    main()

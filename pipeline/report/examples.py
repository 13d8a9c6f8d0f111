"""What the report shows of the negatives themselves: the candidates' scores by verdict, and some questions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
import xxhash

from pipeline.report.charts import Marker, Series
from pipeline.workflow.artifact_store import Artifact
from stages.core.schemas import CORPUS, QRELS_SCORED, QUERIES, VERDICTS, read_table, scan_table
from stages.mining.explain import build_view_rows

N_EXAMPLE_QUERIES, N_EXAMPLE_POSITIVES, N_EXAMPLE_NEGATIVES, N_EXAMPLE_IGNORED = 8, 2, 4, 3
N_SCORE_BINS = 40

_VERDICT_STYLES = (("negative", "solid"), ("ignored", "light"), ("positive", "dark"))


@dataclass(frozen=True)
class ScoreHistogram:
    """Train candidates by score and verdict in `N_SCORE_BINS` equal bins of `score_range`, and the positives' score
    quantiles."""

    score_range: tuple[float, float]
    series: tuple[Series, ...]
    positive_quantiles: tuple[float, float, float] | None
    """The 10 %, 50 % and 90 % quantiles."""

    def make_markers(self, hardness: float | None) -> list[Marker]:
        """Markers for the mean mined negative and the median positive, if there are any."""
        markers = [] if hardness is None else [Marker(f"mean mined negative {hardness:.3f}", hardness)]
        if self.positive_quantiles:
            low, middle, high = self.positive_quantiles
            markers.append(Marker(f"median positive {middle:.3f}", middle, low, high))
        return markers


@dataclass(frozen=True)
class DocumentSample:
    """The first few of `total` documents: rows of `stages.mining.explain.build_view_rows`."""

    rows: list[dict[str, Any]]
    total: int


@dataclass(frozen=True)
class ExampleQuery:
    """A train query with its best positives, its first mined negatives and the nearest excluded candidates."""

    query_id: str
    text: str
    positives: DocumentSample
    negatives: DocumentSample
    ignored: DocumentSample


def compute_score_histogram(artifacts: Mapping[str, Artifact]) -> ScoreHistogram | None:
    """The scores of the train split's candidates; None without any. The tables are streamed."""
    train = _read_train_queries(artifacts).lazy()
    verdicts = scan_table(artifacts["mask"].folder / "verdicts.parquet", VERDICTS)
    verdicts = verdicts.join(train, on="query_id", how="semi").select("verdict", pl.col("score").cast(pl.Float64))
    qrels = scan_table(artifacts["search"].folder / "qrels_scored.parquet", QRELS_SCORED).filter(
        pl.col("relevance") > 0
    )
    positives = qrels.join(train, on="query_id", how="semi").select(pl.col("score").cast(pl.Float64)).collect()["score"]
    ends = verdicts.select(low=pl.col("score").min(), high=pl.col("score").max()).collect(engine="streaming")
    low, high = ends.row(0)
    if low is None:
        return None
    low, high = min([low, *positives]), max([high, *positives])
    high = high if high > low else low + 1e-3
    bin_index = ((pl.col("score") - low) / (high - low) * N_SCORE_BINS).floor().clip(0, N_SCORE_BINS - 1).cast(pl.Int64)
    counts = verdicts.group_by("verdict", bin_index.alias("bin")).len().collect(engine="streaming")
    count_by_bin = {(verdict, i): count for verdict, i, count in counts.iter_rows()}
    series = (Series(v, css, [count_by_bin.get((v, i), 0) for i in range(N_SCORE_BINS)]) for v, css in _VERDICT_STYLES)
    quantiles = [q for share in (0.1, 0.5, 0.9) if (q := positives.quantile(share, "linear")) is not None]
    positive_quantiles = (quantiles[0], quantiles[1], quantiles[2]) if quantiles else None
    return ScoreHistogram((low, high), tuple(series), positive_quantiles)


def sample_queries(artifacts: Mapping[str, Artifact]) -> list[ExampleQuery]:
    """`N_EXAMPLE_QUERIES` queries of the train split (those with the smallest hash of their id) and their documents."""
    train = _read_train_queries(artifacts)
    hashes = pl.Series("hash", [xxhash.xxh3_64_intdigest(f"report:{i}".encode()) for i in train["query_id"]], pl.UInt64)
    sampled = train.with_columns(hashes).sort("hash", "query_id").head(N_EXAMPLE_QUERIES)
    verdicts = _read_rows_of_queries(sampled, artifacts["mask"].folder / "verdicts.parquet", VERDICTS)
    verdicts = verdicts.unique(["query_id", "doc_id"], keep="first", maintain_order=True)
    qrels = _read_rows_of_queries(sampled, artifacts["search"].folder / "qrels_scored.parquet", QRELS_SCORED)
    doc_ids = pl.concat([verdicts["doc_id"], qrels["doc_id"]]).unique().implode()
    corpus = scan_table(artifacts["pairs"].folder / "corpus.parquet", CORPUS).select("doc_id", "text")
    texts = corpus.filter(pl.col("doc_id").is_in(doc_ids)).collect()
    rule = artifacts["mask"].summary["rule"]
    mined = _read_mined_negatives(artifacts["sample"], set(sampled["query_id"]))
    examples = []
    for query_id, text in sampled.select("query_id", "query").iter_rows():
        is_query = pl.col("query_id") == query_id
        rows = build_view_rows(qrels.filter(is_query), verdicts.filter(is_query), texts, rule).to_dicts()
        examples.append(_make_example_query(query_id, text, rows, mined.get(query_id, [])))
    return examples


def _make_example_query(
    query_id: str, text: str, rows: list[dict[str, Any]], mined: list[tuple[str, str]]
) -> ExampleQuery:
    by_id = {row["doc_id"]: row for row in rows}
    positives = [row for row in rows if row["verdict"] == "positive"]
    masked = sorted((row for row in rows if row["verdict"] == "ignored"), key=_measure_threshold_distance)
    return ExampleQuery(
        query_id,
        text,
        DocumentSample(positives[:N_EXAMPLE_POSITIVES], len(positives)),
        DocumentSample(
            [
                by_id.get(doc_id) or _make_random_negative_row(doc_id, text)
                for doc_id, text in mined[:N_EXAMPLE_NEGATIVES]
            ],
            len(mined),
        ),
        DocumentSample(masked[:N_EXAMPLE_IGNORED], len(masked)),
    )


def _make_random_negative_row(doc_id: str, text: str) -> dict[str, Any]:
    """A mined negative that is no candidate, as a row."""
    facts = {"rank": None, "score": None, "verdict": "negative", "explanation": "drawn from all documents"}
    return {"doc_id": doc_id, "text": text, **facts}


def _measure_threshold_distance(row: Mapping[str, Any]) -> tuple[bool, float, str]:
    """A sort key: the distance of a candidate's score or probability from its threshold; without one, the score."""
    measured = row["p_false_negative"] if row["reason"] == "learned" else row["score"]
    if row["threshold"] is None or measured is None:
        return True, row["score"], row["doc_id"]
    return False, abs(measured - row["threshold"]), row["doc_id"]


def _read_train_queries(artifacts: Mapping[str, Artifact]) -> pl.DataFrame:
    queries = read_table(artifacts["pairs"].folder / "queries.parquet", QUERIES, ["query_id", "query", "split"])
    return queries.filter(pl.col("split") == "train").drop("split")


def _read_rows_of_queries(queries: pl.DataFrame, path: Any, schema: Any) -> pl.DataFrame:
    return scan_table(path, schema).filter(pl.col("query_id").is_in(queries["query_id"].implode())).collect()


def _read_mined_negatives(sample: Artifact, query_ids: set[str]) -> dict[str, list[tuple[str, str]]]:
    """The negatives (id, text) of some queries in mined.jsonl, in its order."""
    negatives: dict[str, list[tuple[str, str]]] = {}
    with (sample.folder / "mined.jsonl").open(encoding="utf-8", newline="\n") as file:
        for line in file:
            row = json.loads(line)
            if row["query_id"] in query_ids:
                negatives.setdefault(row["query_id"], []).extend(zip(row["neg_ids"], row["neg"], strict=True))
    return negatives

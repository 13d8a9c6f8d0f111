"""Does the encoder fit: `python -m tests.benchmarks.encoder_fit [--only NAME ...] [--model NAME] [--url URL]`.

Encodes and searches a sample of real tables in several languages and prints what prep measures, a line each. The tables
are not part of the project; without --data they are looked for in ../shared/data.
"""

import argparse
import tempfile
from pathlib import Path

import polars as pl

from stages.core import schemas
from stages.core.context import NullProgress, StageContext
from stages.core.hashing import sample_by_hash
from stages.core.model_files import DEFAULT_ENCODER
from stages.embedding import stage as embedding_stage
from stages.embedding.encoder_fit import EncoderFit
from stages.retrieval import stage as retrieval_stage

ROOT = Path(__file__).parent.parent.parent
COLLECTIONS = ("squad_dev", "stackfaq", "medquad", "bioasq", "cmrc2018")
COVID_LANGUAGES = ("en", "de", "pl")
TLDR_LANGUAGES = ("en", "fr", "de", "pl", "tr", "ru", "uk", "ar", "fa", "hi", "bn", "ta", "th", "ko", "ja", "zh")
TABLES = (
    *COLLECTIONS,
    "masteringrag",
    *(f"covid_{language}" for language in COVID_LANGUAGES),
    *(f"tldr_{language}" for language in TLDR_LANGUAGES),
)
HEAD = (
    *("table", "script", "unknown", "letters", "pieces a word", "cut"),
    *("lead over chance", "MRR@10", "BM25", "difference", "verdict before search", "verdict"),
)


def read_pairs(name: str, data: Path) -> pl.DataFrame:
    """query and text of the positive pairs of a table."""
    if name == "masteringrag":
        rows = pl.read_excel(data / name / "question_answer.xlsx", engine="openpyxl")
        return rows.select(query="question", text="context").drop_nulls()
    if name.startswith("covid_"):
        rows = pl.read_csv(data / "covid_faq/qa_table.csv").filter(pl.col("lang") == name.removeprefix("covid_"))
        return rows.select(query="question", text="answer").drop_nulls()
    if name.startswith("tldr_"):  # what a command's example does, and what the command does
        pages = pl.read_parquet(data / "tldr/corpus.parquet")
        pages = pages.filter(pl.col("doc_id").str.starts_with(f"{name.removeprefix('tldr_')}/"))
        lines = pages["text"].str.split("\n").list
        text = pl.Series(lines.get(0).str.split_exact(": ", 1).struct[1])
        return pl.DataFrame({"query": lines.get(1, null_on_oob=True), "text": text}).drop_nulls()
    queries, corpus, qrels = (
        pl.read_parquet(data / name / f"{file}.parquet") for file in ("queries", "corpus", "qrels")
    )
    corpus = corpus.select("doc_id", schemas.document_text(corpus.columns))
    positives = qrels.filter(pl.col("relevance") > 0).join(queries, on="query_id").join(corpus, on="doc_id")
    return positives.select("query", "text")


def write_tables(pairs: pl.DataFrame, n_queries: int, n_documents: int, folder: Path) -> dict[str, Path]:
    """A sample as the tables of a step: `n_queries` train queries with one positive each, `n_documents` documents."""
    pairs = pairs.filter(pl.col("query") != "", pl.col("text") != "").unique("query", keep="first", maintain_order=True)
    sampled = sample_by_hash(pairs["query"], n_queries, "benchmark")
    kept = pairs.filter(pl.col("query").is_in(sampled))
    others = sample_by_hash(pairs["text"], n_documents, "benchmark")
    documents = sorted(set(list(dict.fromkeys([*kept["text"], *others]))[:n_documents]) | set(kept["text"]))
    tables = {
        "queries": kept.select(query_id="query", query="query", split=pl.lit("train"), group="query").sort("query_id"),
        "corpus": pl.DataFrame({"doc_id": documents, "text": documents}),
        "qrels": kept.select(query_id="query", doc_id="text", relevance=pl.lit(1, pl.Int32)),
    }
    for name, frame in tables.items():
        schemas.write_table(frame, schemas.TABLES[name], folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in tables}


def measure(pairs: pl.DataFrame, params: embedding_stage.Params, sizes: tuple[int, int], folder: Path) -> EncoderFit:
    """Encode and search a sample of the pairs in `folder`."""
    inputs = write_tables(pairs, *sizes, folder)
    context = StageContext(NullProgress(), folder / "scratch", folder / "vectors")
    embedding_stage.run(params, inputs, folder, context)
    inputs |= {"encoder": folder / "encoder.json", "text_hashes": folder / "text_hashes.npy"}
    summary = retrieval_stage.run(retrieval_stage.Params(top_k=10), inputs, folder, context)
    return EncoderFit.from_dict(summary["encoder_fit"])


def format_row(name: str, fit: EncoderFit) -> tuple[str, ...]:
    """The line of a table; of queries and documents the greater share."""
    texts = (fit.queries, fit.documents)
    shares = [
        max((value for value in values if value is not None), default=None)
        for values in zip(*((one.unknown_share, one.letter_share, one.pieces_per_word) for one in texts), strict=True)
    ]
    figures = ["" if value is None else f"{value:.2f}" for value in [*shares, fit.documents.truncated_share]]
    ranking = fit.ranking
    assert ranking
    low, high = ranking.mrr_difference_low, ranking.mrr_difference_high
    interval = "" if low is None or high is None else f" ({low:+.2f} to {high:+.2f})"
    return (
        *(name, str(fit.documents.script), *figures, f"{ranking.lead:.2f}", f"{ranking.mrr_at_10:.3f}"),
        *(f"{ranking.bm25_mrr_at_10:.3f}", f"{ranking.mrr_difference:+.2f}{interval}"),
        *(fit.add_ranking(None).verdict, fit.verdict),
    )


def main() -> None:
    """Print a Markdown table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(
        prog="tests.benchmarks.encoder_fit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, metavar="NAME", help=", ".join(TABLES))
    parser.add_argument("--model", default=DEFAULT_ENCODER)
    parser.add_argument("--url", help="of a server that encodes")
    parser.add_argument("--queries", type=int, default=150)
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    given = parser.parse_args()
    params = embedding_stage.Params(
        model=given.model, url=given.url, input_type="passage" if given.url else "", batch_tokens=2048
    )
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            fit = measure(read_pairs(name, given.data), params, (given.queries, given.documents), Path(folder))
        print(f"| {' | '.join(format_row(name, fit))} |", flush=True)


if __name__ == "__main__":
    main()

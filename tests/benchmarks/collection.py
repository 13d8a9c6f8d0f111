"""A made-up collection of any size whose mask has work to do, as the stages read it, with its vectors stored.

Documents lie around centres, a question near its one positive: cosine about 0.64 to it and 0.5 to its neighbours, so
that `perc` sets some of them aside and leaves others. Texts are words drawn at random, so no two are alike.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.work import Result, Sizes

CHARS = 300
"""Length of a document."""
CROWD = 500
"""Documents around a centre."""
ROWS = 65_536


def write(folder: Path, sizes: Sizes) -> Result:
    """Write the tables under pairs/, vectors into vectors/, queries.npy and documents.npy, and encode/encoder.json."""
    import numpy as np
    import polars as pl

    from stages.core import schemas
    from stages.core.context import NullProgress, StageContext
    from stages.core.hashing import hash_texts
    from stages.core.model_files import DEFAULT_ENCODER
    from stages.embedding import stage as embedding_stage
    from stages.embedding.encoder import resolve_encoder_spec
    from stages.embedding.vector_store import VectorStore

    random = np.random.default_rng(0)
    queries, documents, dimension = sizes["queries"], sizes["documents"], sizes["dimension"]
    pairs = folder / "pairs"
    pairs.mkdir()
    words = np.array(["".join(random.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(5_000)])
    pool = " ".join(random.choice(words, 200_000))
    starts = random.integers(0, len(pool) - CHARS, documents)
    positive = np.arange(queries) * documents // queries
    query_ids = pl.Series([f"q{i:08d}" for i in range(queries)])
    doc_ids = pl.Series([f"d{i:08d}" for i in range(documents)])
    asked = [f"question {i} {pool[s : s + 60]}" for i, s in enumerate(starts[positive].tolist())]
    texts = [f"document {i} {pool[s : s + CHARS]}" for i, s in enumerate(starts.tolist())]
    frames = {
        "queries": pl.DataFrame({"query_id": query_ids, "query": asked, "split": "train", "group": query_ids}),
        "corpus": pl.DataFrame({"doc_id": doc_ids, "text": texts}),
        "qrels": pl.DataFrame({"query_id": query_ids, "doc_id": doc_ids.gather(positive), "relevance": 1}),
        "answers": pl.DataFrame({"query_id": [], "answer": []}, schema={"query_id": pl.String, "answer": pl.String}),
    }
    frames["label_overrides"] = frames["qrels"].clear()
    frames["near_duplicates"] = pl.DataFrame(schema={"doc_id": pl.String, "cluster": pl.String})
    for name, frame in frames.items():
        schema = schemas.TABLES[name]
        schemas.write_table(frame, schema, pairs / f"{name}.parquet")

    made = resolve_encoder_spec(DEFAULT_ENCODER)
    store = VectorStore(folder / "vectors" / made.key)
    centres = random.standard_normal((max(1, documents // CROWD), dimension), np.float32)
    vectors = np.lib.format.open_memmap(folder / "documents.npy", "w+", np.float32, (documents, dimension))
    questions = np.lib.format.open_memmap(folder / "queries.npy", "w+", np.float32, (queries, dimension))
    for start in range(0, documents, ROWS):
        part = vectors[start : start + ROWS]
        own = random.standard_normal(part.shape, np.float32)
        centre = centres[random.integers(0, len(centres), len(part))]
        part[:] = _unit(centre + own)
        store.append(hash_texts(texts[start : start + ROWS], made.hash_prefix("document")), part)
        here = slice(*np.searchsorted(positive, [start, start + len(part)]))
        rows = positive[here] - start
        noise = random.standard_normal((len(rows), dimension), np.float32)
        questions[here] = _unit(centre[rows] + np.float32(0.3) * own[rows] + noise)
    for start in range(0, queries, ROWS):
        rows_of = slice(start, start + ROWS)
        store.append(hash_texts(asked[rows_of], made.hash_prefix("query")), questions[rows_of])
    (folder / "encode").mkdir()
    tools = StageContext(NullProgress(), folder / "scratch", folder / "vectors", folder / "logs")
    inputs = {name: pairs / f"{name}.parquet" for name in ("queries", "corpus")}
    summary = embedding_stage.run(embedding_stage.Params(), inputs, folder / "encode", tools)
    assert summary["n_encoded"] == 0, "the stored vectors are not those that encode looks for"
    return {"positives": queries, "text_mb": round(sum(map(len, texts)) / 1e6, 1)}


def _unit(vectors: Any) -> Any:
    import numpy as np

    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def load(names: tuple[str, ...]) -> None:
    """Import what these stages are made of, so that no clock counts it; memory is had as `prep` has it."""
    import faiss  # noqa: F401

    from pipeline.workflow.graph import STAGES_BY_NAME
    from stages.core.memory import limit_malloc_arenas

    limit_malloc_arenas()
    for name in names:
        STAGES_BY_NAME[name].load_module()


def mine(names: tuple[str, ...], settings: Mapping[str, Any], folder: Path, out: Path) -> dict[str, float]:
    """Run these stages from nothing, each into a new folder of `out`; inputs that are not there come from
    `folder`.

    Returns the seconds of each.
    `settings` are those of [mine], for whichever stage has them.
    """
    import shutil
    import time

    from pipeline.workflow.graph import STAGES_BY_NAME
    from stages.core.context import NullProgress, StageContext
    from stages.core.memory import reset_peak_rss

    seconds = {}
    if "search" in names:  # a search goes on from the last one's lists
        for lists in (folder / "vectors").glob("*/topk_cache"):
            shutil.rmtree(lists)
    for name in names:
        stage = STAGES_BY_NAME[name]
        module = stage.load_module()
        params = module.Params(**{key: value for key, value in settings.items() if key in module.Params.model_fields})
        made, scratch = out / name, out / "scratch"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        scratch.mkdir(exist_ok=True)
        places = {path: out / path for path in stage.select_inputs(params)}
        inputs = {place.stem: place if place.exists() else folder / path for path, place in places.items()}
        started = time.perf_counter()
        reset_peak_rss()  # as the runner does
        module.run(params, inputs, made, StageContext(NullProgress(), scratch, folder / "vectors", out / "logs"))
        seconds[name] = round(time.perf_counter() - started, 3)
        shutil.rmtree(scratch)
    return seconds

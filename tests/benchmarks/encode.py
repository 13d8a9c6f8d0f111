"""Encode squad_dev and tldr, 20,000 texts: the encode stage against `SentenceTransformer.encode` with its defaults.

Both begin with texts on disk and end with vectors on disk; loading the model (all-MiniLM-L6-v2) is in both. The third
side is the machine: the best rate of a square matrix product in the format that its CPU or GPU is made for.

FLOPs are counted from the model, one product as 2, over the texts' own tokens n (special ones in, padding out, cut at
the model's limit): sum over texts of layers x (n x 2 x (4 h^2 + 2 h f) + 4 n^2 h), with h the hidden and f the
intermediate size; the first part are the layers' weights, the second attention's two products. Embeddings, norms,
softmax and pooling multiply no matrices and count as 0.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.clock import Clock, rated
from tests.benchmarks.work import Goal, Result, Sizes, Work

DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"
SETS = ("squad_dev", "tldr")
AGREE = 0.999
"""Least cosine between the two sides' vectors of a text."""


def prepare(folder: Path, sizes: Sizes) -> Result:
    """queries.parquet and corpus.parquet: texts drawn from both sets; and the FLOPs that they ask for.

    All of squad_dev and the rest from tldr, drawn by hash; with fewer texts, both are drawn from alike.
    """
    import json

    import polars as pl

    from stages.core import schemas
    from stages.core.model_files import DEFAULT_ENCODER, resolve_model
    from stages.core.schemas import document_text

    frames = []
    for name in SETS:
        queries = pl.read_parquet(DATA / name / "queries.parquet").select(text="query", role=pl.lit("query"))
        corpus = pl.read_parquet(DATA / name / "corpus.parquet")
        documents = corpus.select(document_text(corpus.columns), role=pl.lit("document"))
        both = pl.concat([queries, documents]).unique("text", maintain_order=True)
        frames.append(both.sample(fraction=1, shuffle=True, seed=0))
    squad, tldr = frames
    share = len(squad) / WORK.sizes["texts"]
    kept = min(len(squad), round(sizes["texts"] * share))
    texts = pl.concat([squad.head(kept), tldr.head(sizes["texts"] - kept)]).unique("text", maintain_order=True)
    number = pl.int_range(pl.len()).cast(pl.String).str.zfill(6)
    texts = texts.with_columns(id=pl.format("t{}", number))
    split = {"split": pl.lit("train"), "group": pl.col("id")}
    asked = texts.filter(pl.col("role") == "query").select(query_id="id", query="text", **split)
    read = texts.filter(pl.col("role") == "document").select(doc_id="id", text="text")
    schemas.write_table(asked, schemas.QUERIES, folder / "queries.parquet")
    schemas.write_table(read, schemas.CORPUS, folder / "corpus.parquet")
    model = resolve_model(DEFAULT_ENCODER)
    (folder / "model").symlink_to(model)
    config = json.loads((model / "config.json").read_text())
    lengths = token_counts(model, [*asked["query"], *read["text"]])
    counted = flops(lengths, config)
    (folder / "flops.json").write_text(json.dumps(counted))
    return {"texts": len(lengths), "tokens": sum(lengths), "longest": max(lengths), "flops": counted}


def token_counts(model: Path, texts: list[str]) -> list[int]:
    """Tokens of each text as the encoder reads it: special ones in, cut at its limit."""
    import json

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(json.loads((model / "sentence_bert_config.json").read_text())["max_seq_length"])
    tokenizer.no_padding()
    return [len(encoding) for encoding in tokenizer.encode_batch(texts)]


def flops(lengths: list[int], config: dict[str, Any]) -> int:
    """FLOPs to encode texts of so many tokens: see the top of this file."""
    layers, hidden, inner = (int(config[n]) for n in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    weights = 4 * hidden**2 + 2 * hidden * inner
    return layers * sum(2 * n * weights + 4 * n * n * hidden for n in lengths)


def _rated(folder: Path, clock: Clock) -> Result:
    import json

    return rated(clock.result(), json.loads((folder / "flops.json").read_text()))


def ours(folder: Path, sizes: Sizes) -> Result:
    """The encode stage into an empty vector store."""
    import shutil

    import sentence_transformers  # noqa: F401

    from stages.core.context import NullProgress, StageContext
    from stages.embedding import stage as embedding_stage

    out = folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    tools = StageContext(NullProgress(), out / "scratch", out / "vectors", out / "logs")
    inputs = {name: folder / f"{name}.parquet" for name in ("queries", "corpus")}
    clock = Clock()
    embedding_stage.run(embedding_stage.Params(), inputs, out, tools)
    return _rated(folder, clock)


def peer(dtype: str | None = None) -> Callable[[Path, Sizes], Result]:
    """sentence-transformers' encode; `dtype` is the number format that its model is loaded in."""

    def side(folder: Path, sizes: Sizes) -> Result:
        import numpy as np
        import polars as pl
        import torch
        from sentence_transformers import SentenceTransformer

        clock = Clock()
        queries = pl.read_parquet(folder / "queries.parquet")["query"].to_list()
        documents = pl.read_parquet(folder / "corpus.parquet")["text"].to_list()
        options = {"model_kwargs": {"dtype": getattr(torch, dtype)}} if dtype else {}
        model = SentenceTransformer(str(folder / "model"), local_files_only=True, **options)
        vectors = model.encode([*queries, *documents], show_progress_bar=False)
        np.save(folder / f"theirs{dtype or ''}.npy", vectors)
        return _rated(folder, clock)

    return side


def matrix_rate(folder: Path, sizes: Sizes) -> Result:
    """The best of several square products, in bfloat16 where the machine has it, else float32; GFLOP/s.

    `layer_gflops`: the same for the encoder's own widest product, 4,096 tokens x 384 x 1,536.
    """
    import torch

    from stages.core.device import pick_device, should_use_bfloat16

    device = pick_device("auto")
    dtype = torch.bfloat16 if should_use_bfloat16(device, "auto") else torch.float32
    squares = (1_024, 2_048) if device == "cpu" else (4_096, 8_192, 16_384)
    best, layer = (
        _fastest(torch, shapes, device, dtype)
        for shapes in ([(side, side, side) for side in squares], [(4_096, 384, 1_536)])
    )
    return {**best, "layer_gflops": layer["gflops"], "layer_cpu_gflops": layer["cpu_gflops"], "dtype": str(dtype)}


def _fastest(torch: Any, shapes: list[tuple[int, int, int]], device: str, dtype: Any) -> Result:
    """The greatest rate of some products (rows, inner, columns), by the clock and by processor time."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    found = []
    for rows, inner, columns in shapes:
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(inner, columns, device=device, dtype=dtype)
        for _ in range(6):
            wait()
            clock = Clock()
            a @ b
            wait()
            found.append(rated(clock.result(), 2 * rows * inner * columns))
    return {rate: max(one[rate] for one in found) for rate in ("gflops", "cpu_gflops")}


def check(folder: Path, sizes: Sizes) -> Result:
    """Both sides give every text the same vector, as near as their number formats let them."""
    import numpy as np

    from stages.embedding.lookup import VectorLookup

    encodings = {"encoder": folder / "ours" / "encoder.json", "text_hashes": folder / "ours" / "text_hashes.npy"}
    vectors = VectorLookup(encodings, folder / "ours" / "vectors")
    queries, documents = np.arange(len(vectors.query_hashes)), np.arange(len(vectors.document_hashes))
    mine = np.concatenate([vectors.read_queries(queries), vectors.read_documents(documents)])
    found = {}
    for path in sorted(folder.glob("theirs*.npy")):
        theirs = np.load(path).astype(np.float32)
        cosine = np.einsum("nd,nd->n", mine, theirs) / np.linalg.norm(theirs, axis=1)
        assert cosine.min() > AGREE, f"{path.stem}: a vector has the cosine {cosine.min()} to ours"
        found[path.stem] = {"mean_cosine": float(cosine.mean()), "least_cosine": float(cosine.min())}
    return found


WORK = Work(
    about="texts on disk to vectors on disk, all-MiniLM-L6-v2",
    sizes={"texts": 20_000},
    scaled=frozenset({"texts"}),
    prepare=prepare,
    sides={"ours": ours, "sentence-transformers": peer(), "matrix rate": matrix_rate},
    goals=(
        Goal("sentence-transformers", over="sentence-transformers", under="ours", at_least=1.8),
        Goal("matrix rate", over="ours", under="matrix rate", figure="gflops", at_least=0.75),
    ),
    check=check,
)

"""Which way to compute the default encoder is fastest on this CPU: `python -m tests.benchmarks.encode_kinds FOLDER...`.

Each kind encodes the questions and documents of a collection (queries.parquet, corpus.parquet, qrels.parquet) through
`Encoder`, in which only the transformer is another: the same texts in the same batches. Kinds take turns in rounds and
the least seconds of each count, so that a busy machine slows none alone. Loading (converting, calibrating, compiling
and a first encoding of the sample's texts) has its own column. What int8 is calibrated with is the sample too, for a
vector must not depend on the collection that its text is in.

cosine: to the same text's vector in float32, mean and least. alone: some documents again, each in a batch of its own:
"same" to the bit, or the least cosine to what it was among others; where it is not "same", vectors of two runs differ.
nDCG@10: of exact search among the documents encoded, in points (x 100), with the mean difference to float32 and the
standard error of that over questions. A faster kind is kept if nDCG@10 loses at most 0.1 points.

openvino computes in the number format that it picks for the CPU: bfloat16 where the CPU is made for it, else float32.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import polars as pl

from stages.core.arrays import Floats
from stages.core.hashing import stable_hash
from stages.core.model_files import DEFAULT_ENCODER
from stages.core.schemas import document_text
from stages.embedding.encoder import Encoder, resolve_encoder_spec
from stages.embedding.stage import Params
from stages.evaluation.metrics import Evaluator

SAMPLE = Path(__file__).parent.parent.parent / "data_samples"
TEXTS = 300
"""Of the sample, for calibrating; the first WARM of them are encoded before anything is timed."""
WARM = 50
ALONE = 30
BATCH = Params().batch_tokens
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def loaded(dtype: str = "float32") -> Encoder:
    """The encoder as prep has it."""
    return Encoder(resolve_encoder_spec(DEFAULT_ENCODER, dtype=dtype, device="cpu"), DEFAULT_ENCODER)


def compiled(dtype: str = "float32") -> Encoder:
    """torch.compile for any shape."""
    import torch

    encoder = loaded(dtype)
    model = encoder._model[0].model
    model.forward = torch.compile(model.forward, dynamic=True)
    return encoder


def int8() -> Encoder:
    """torch's dynamic quantisation of the linear layers: weights once, activations by the range in their batch."""
    import torch

    encoder = loaded()
    torch.ao.quantization.quantize_dynamic(encoder._model[0].model, {torch.nn.Linear}, torch.qint8, inplace=True)
    return encoder


def openvino(calibrated: bool = False) -> Encoder:
    """OpenVINO's CPU plugin; `calibrated`: quantised by NNCF with ranges from the sample's texts."""
    import torch

    ov, nncf = import_module("openvino"), import_module("nncf") if calibrated else None
    encoder, texts = loaded(), sample_texts()
    model = ov.convert_model(encoder._model[0].model, example_input=tokens(encoder, texts[:2]))
    if nncf:
        items = [{name: part.numpy() for name, part in tokens(encoder, [text]).items()} for text in texts]
        kind = nncf.ModelType.TRANSFORMER
        model = nncf.quantize(model, nncf.Dataset(items), model_type=kind, subset_size=len(items))
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "THROUGHPUT"}
    ready = ov.Core().compile_model(model, "CPU", threads)
    return replaced(encoder, lambda features: ready(features)[0])


def onnx_int8() -> Encoder:
    """ONNX Runtime with its dynamic quantisation; 7-bit weights, as it advises for CPUs without VNNI."""
    import torch

    runtime, quantization = import_module("onnxruntime"), import_module("onnxruntime.quantization")
    encoder = loaded()
    shapes = {name: {0: torch.export.Dim("texts"), 1: torch.export.Dim("length")} for name in INPUTS}
    example = tokens(encoder, sample_texts()[:2])
    with TemporaryDirectory() as folder:
        whole, small = str(Path(folder) / "float32.onnx"), str(Path(folder) / "int8.onnx")
        torch.onnx.export(
            encoder._model[0].model, (), whole, kwargs=example, dynamo=True, dynamic_shapes=shapes, verbose=False
        )
        quantization.quantize_dynamic(whole, small, per_channel=True, reduce_range=True)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(small, options, providers=["CPUExecutionProvider"])
    return replaced(encoder, lambda features: session.run(None, features)[0])


def replaced(encoder: Encoder, call: Callable[[dict[str, Any]], Any]) -> Encoder:
    """`encoder` with `call`, from the arrays of INPUTS to the last hidden states, in place of its transformer."""
    import torch

    def forward(**features: Any) -> dict[str, Any]:
        return {"last_hidden_state": torch.from_numpy(call({name: features[name].numpy() for name in INPUTS}))}

    encoder._model[0].model.forward = forward
    return encoder


KINDS: dict[str, Callable[[], Encoder]] = {
    "float32": loaded,
    "bfloat16": lambda: loaded("bfloat16"),
    "compile": compiled,
    "compile-bfloat16": lambda: compiled("bfloat16"),
    "int8": int8,
    "openvino": openvino,
    "openvino-int8": lambda: openvino(calibrated=True),
    "onnx-int8": onnx_int8,
}


def sample_texts() -> list[str]:
    """Some of the sample's articles, and titles, which are as short as questions."""
    articles = pl.read_csv(SAMPLE / "articles.csv", infer_schema=False)
    texts = pl.concat([articles["title"], articles["body"]]).unique()
    return sorted(texts, key=lambda text: stable_hash(0, "sample", text))[:TEXTS]


def tokens(encoder: Encoder, texts: list[str]) -> dict[str, Any]:
    """What the transformer reads of texts in one batch."""
    features = encoder._tokenise_texts(texts, "document")
    return {name: features[name] for name in INPUTS}


def drawn(folder: Path, most: int | None) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Questions, documents (as models read them) and positives of a collection.

    With `most`: questions in drawn order while all of their positives are no more, then other documents up to it.
    """
    queries, corpus, qrels = (pl.read_parquet(folder / f"{name}.parquet") for name in ("queries", "corpus", "qrels"))
    documents = corpus.select("doc_id", document_text(corpus.columns)).sort("doc_id")
    positives = qrels.filter(pl.col("relevance") > 0).join(documents, on="doc_id", how="semi")
    of = dict(positives.group_by("query_id").agg("doc_id").iter_rows())
    most, asked, kept = most or len(documents), set[str](), set[str]()
    for query_id in sorted(of, key=lambda name: stable_hash(0, "question", name)):
        if len(kept.union(of[query_id])) > most:
            break
        asked.add(query_id)
        kept.update(of[query_id])
    read = sorted(documents["doc_id"], key=lambda name: (name not in kept, stable_hash(0, "document", name)))[:most]
    queries, positives = (frame.filter(pl.col("query_id").is_in(asked)) for frame in (queries, positives))
    return queries.sort("query_id"), documents.filter(pl.col("doc_id").is_in(read)), positives


def encoded(encoder: Encoder, texts: list[str], role: str, batch_tokens: int) -> tuple[Floats, int]:
    """Vectors in the texts' order, and how many tokens were read."""
    parts = list(encoder.encode(texts, role, batch_tokens))
    order = np.argsort(np.concatenate([places for places, _, _ in parts]))
    return np.concatenate([vectors for _, vectors, _ in parts])[order], sum(count for _, _, count in parts)


def ndcg(
    judge: Evaluator, questions: list[str], documents: list[str], scores: Floats, positives: pl.DataFrame
) -> Floats:
    """nDCG@10 of each question, in points."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :100]  # more than 10, so that ties at the tenth place are seen
    run = pl.DataFrame(
        {
            "query_id": np.repeat(np.array(questions, object), top.shape[1]),
            "doc_id": np.array(documents, object)[top.ravel()],
            "score": np.take_along_axis(scores, top, axis=1).ravel(),
        }
    )
    judged = run.join(positives.select("query_id", "doc_id", "relevance"), on=["query_id", "doc_id"], how="left")
    found: Floats = judge.evaluate(judged.with_columns(pl.col("relevance").fill_null(0)))["value"].to_numpy() * 100
    return found


def table(folder: Path, most: int | None, encoders: Mapping[str, tuple[Encoder, float]], rounds: int) -> str:
    """The collection's figures: a heading and a line a kind, in Markdown."""
    queries, documents, positives = drawn(folder, most)
    asked, read = queries["query"].to_list(), documents["text"].to_list()
    judge = Evaluator(positives, ["nDCG@10"])
    seconds, vectors, count = dict.fromkeys(encoders, np.inf), {}, 0
    for _ in range(rounds):
        for kind, (encoder, _) in encoders.items():
            started = perf_counter()
            parts = [encoded(encoder, *work, BATCH) for work in ((asked, "query"), (read, "document"))]
            seconds[kind] = min(seconds[kind], perf_counter() - started)
            vectors[kind], count = [part for part, _ in parts], sum(some for _, some in parts)
    points = {
        kind: ndcg(judge, queries["query_id"].to_list(), documents["doc_id"].to_list(), q @ d.T, positives)
        for kind, (q, d) in vectors.items()
    }
    lines = [
        f"{folder.name}: {len(asked):,} questions, {len(read):,} documents, {count:,} tokens\n",
        "| kind | load s | seconds | times float32 | tokens/s | mean cosine | least | alone | nDCG@10 | to float32 |",
        "|---|" + "---:|" * 9,
    ]
    for kind, (encoder, load) in encoders.items():
        cosine = np.concatenate([(a * b).sum(axis=1) for a, b in zip(vectors[kind], vectors["float32"], strict=True)])
        among, (alone, _) = vectors[kind][1][:ALONE], encoded(encoder, read[:ALONE], "document", 1)
        same = "same" if np.array_equal(among, alone) else f"{(among * alone).sum(axis=1).min():.6f}"
        took, less = seconds[kind], points[kind] - points["float32"]
        lines.append(
            f"| {kind} | {load:.1f} | {took:.2f} | {seconds['float32'] / took:.2f} | {count / took:,.0f} "
            f"| {cosine.mean():.5f} | {cosine.min():.5f} | {same} | {points[kind].mean():.2f} "
            f"| {less.mean():+.2f} ± {less.std() / len(less) ** 0.5:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Load the kinds that can be, then print a table for each collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--texts", type=int, help="documents of each collection at most (default: all)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="beside float32 (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each kind encodes everything")
    given = parser.parse_args()
    encoders = {}
    for kind in dict.fromkeys(["float32", *given.kinds]):
        started = perf_counter()
        try:
            with redirect_stdout(sys.stderr):  # NNCF draws its progress on stdout
                encoder = KINDS[kind]()
        except ImportError as error:
            print(f"{kind} is left out, a package is not installed: {error}\n", flush=True)
            continue
        encoded(encoder, sample_texts()[:WARM], "document", BATCH)
        encoders[kind] = encoder, perf_counter() - started
    for folder in given.folders:
        print(table(folder, given.texts, encoders, given.rounds) + "\n", flush=True)


if __name__ == "__main__":
    main()

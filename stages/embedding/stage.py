"""Encode: every query and document becomes a vector, once. The vectors go to the store; the artifact says which."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from stages.core.errors import InputError
from stages.core.executor import Worker, pieces
from stages.core.model_files import DEFAULT_ENCODER, model_digest, portable, resolve_model
from stages.core.params import Params as Base
from stages.core.params import option
from stages.core.schemas import CORPUS, QUERIES, Summary, Tools, scan_table
from stages.embedding.encoder import Encoder, Recipe, recipe, replaced_similarity
from stages.embedding.lookup import encoder_texts, encodings
from stages.embedding.vector_store import Buffer, Floats, Hashes, VectorStore, replace_synced, text_hashes, unique


class Params(Base):
    """The encoder, and how it is used."""

    # The model's content and name enter the key through `identity`, the device through the encoder's key.
    model: str = option(
        DEFAULT_ENCODER,
        "Encoder: a sentence-transformers or Hugging Face model, by hub id or folder.",
        model=True,
        unkeyed=True,
    )
    query_prompt: str | None = option(
        None, 'Put before every query, as in "query: ". Left out: the model\'s own query prompt, if it has one.'
    )
    document_prompt: str | None = option(
        None, 'Put before every document, as in "passage: ". Left out: the model\'s own document prompt, if any.'
    )
    max_length: int | None = option(
        None, "Tokens of a text that are read; the rest is cut off. Left out: the model's own limit.", ge=4
    )
    similarity: Literal["auto", "cosine", "dot"] = option(
        "auto",
        "What compares two vectors: cosine (vectors are scaled to length 1) or dot. auto: dot where the model says so, "
        "else cosine, also for a model that says euclidean or manhattan: search is by inner product.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "Number format the model computes in. auto: bfloat16 where the device has instructions for it (NVIDIA GPUs "
        "since Ampere, CPUs with avx512_bf16 or amx_bf16), else float32. Vectors of one are no vectors of the other: "
        "name one where a workspace moves between machines.",
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Where the model runs. auto: cuda where torch and the driver offer it, else cpu.", unkeyed=True
    )
    more_models: tuple[str, ...] = option(
        (),
        "Further encoders, in this order the sources dense2, dense3, ... of mine-negatives; repeat it for several. "
        "Each goes by its own prompts, limit of tokens and similarity.",
        model=True,
        unkeyed=True,
    )
    batch_tokens: int = option(
        4096, "Tokens a batch: more use more memory. It changes the speed only, never a vector.", unkeyed=True, ge=1
    )


VERSION = 1

_WINDOW = 16_384
"""Texts held in memory at once to be sorted by length."""
_ROWS = 8_192
"""Rows of a table read at once."""
_BATCHES = 32
"""Batches that an item of work fills, at four characters a token."""
_LONGEST = 2_048
"""Characters of a text that count for that: most encoders read no more of it."""

_ROLES = {"query": QUERIES, "document": CORPUS}
_TABLES = {"query": "queries", "document": "corpus"}

Rows = npt.NDArray[np.bool_]


def identity(params: Params) -> dict[str, str]:
    """What stands for the models in the artifact's key."""
    made, *more = _recipes(params)
    named = {"encoder": made.key, "model": made.model}
    for number, other in enumerate(more, 2):
        named |= {f"encoder{number}": other.key, f"model{number}": other.model}
    return named


def run(params: Params, inputs: Mapping[str, Path], out: Path, tools: Tools) -> Summary:
    """Encode the texts of `queries` and `corpus` that the store lacks; write encoding.json and texts.npy.

    encoding.json: what the first encoder is and did, and under "more", where there are further ones, the same of each.
    texts.npy: the sorted distinct hashes of all texts, uint8 [n, 16], of one encoder after the other. A run that is
    killed loses at most what came after the last flush. Raises `InputError` for a model that can't be loaded or gives
    no finite vector.
    """
    names = (params.model, *params.more_models)
    for name in names if params.similarity == "auto" else params.more_models:
        if stated := replaced_similarity(name):
            tools.progress.say(
                f"the encoder {name} asks for the {stated} similarity; cosine is used instead, since search is by "
                "inner product (where all vectors have one length, cosine and euclidean rank alike)"
            )
    done = [
        _encoded(made, name, params.batch_tokens, inputs, tools)
        for made, name in zip(_recipes(params), names, strict=True)
    ]
    (encoding, summary), *more = [(encoding, summary) for encoding, summary, _ in done]
    if more:
        encoding = {**encoding, "more": [other for other, _ in more]}
        summary = {**summary, "more": {f"dense{n} {s['encoder']}": _brief(s) for n, (_, s) in enumerate(more, 2)}}
    (out / "encoding.json").write_text(json.dumps(encoding, indent=2, ensure_ascii=False) + "\n")
    np.save(out / "texts.npy", np.concatenate([texts for _, _, texts in done]))
    return summary


def _brief(summary: Summary) -> Summary:
    return {name: summary[name] for name in ("encoded", "cached", "dimension")}


def _encoded(
    made: Recipe, name: str, batch_tokens: int, inputs: Mapping[str, Path], tools: Tools
) -> tuple[dict[str, Any], Summary, Hashes]:
    """Encode with one encoder, named `name` by the user: its part of encoding.json, of the summary and of texts.npy."""
    store = VectorStore(tools.vectors / made.key)
    if store.broken:
        tools.progress.say(f"{len(store.broken)} damaged vector files were set aside; their texts are encoded again.")
    paths = {role: inputs[table] for role, table in _TABLES.items()}
    hashes = {role: _table_hashes(path, role, made) for role, path in paths.items()}
    texts, flags = _new(hashes, store)
    new = sum(int(rows.sum()) for rows in flags.values())
    if new:
        _describe(made, store.folder)
        items = (
            Texts(role, [window[i] for i in piece], window_hashes[piece])
            for role, path in paths.items()
            for window, window_hashes in _windows(path, role, flags[role], hashes[role])
            for piece in pieces([min(len(text), _LONGEST) for text in window], 4 * _BATCHES * batch_tokens)
        )
        tools.progress.say(
            f"{new:,} texts to encode with {made.model} in {made.dtype}; {len(texts) - new:,} are stored already"
        )
        done = tokens = 0
        fitting = batch_tokens
        with Buffer(store) as buffer:
            worker = Worker(partial(Embedding, made, portable(name), batch_tokens), made.device)
            for some in tools.engine.map(worker, items):
                buffer.add(some.hashes, some.vectors)
                done, tokens = done + len(some.hashes), tokens + some.tokens
                tools.progress.advance(done, new, "texts", tokens)
                if some.fitting < fitting:
                    fitting = some.fitting
                    tools.progress.say(
                        f"the memory did not hold a batch: from here on they have at most {fitting:,} tokens. "
                        f"batch_tokens = {fitting} under [encode] begins with that."
                    )
    encoding = {
        "encoder": made.key,
        "model": made.model,
        "dimension": store.dimension,
        "queries": len(hashes["query"]),
        "documents": len(hashes["document"]),
        "texts": len(texts),
        "normalised": made.similarity == "cosine",
        "similarity": made.similarity,
        "dtype": made.dtype,
        "max_length": made.max_length,
        "salts": {role: made.salt(role) for role in paths},
    }
    summary = {
        "queries": len(hashes["query"]),
        "documents": len(hashes["document"]),
        "texts": len(texts),
        "encoded": new,
        "cached": len(texts) - new,
        "dimension": store.dimension,
        "encoder": made.model,
    }
    return encoding, summary, texts


class Texts(NamedTuple):
    """An item of work: texts of one role ("query" or "document") and their hashes, uint8 [n, 16]."""

    role: str
    texts: list[str]
    hashes: Hashes


class Encoded(NamedTuple):
    """A batch's result: hashes, uint8 [b, 16], and vectors, float32 [b, d], of `tokens` tokens in all."""

    hashes: Hashes
    vectors: Floats
    tokens: int
    fitting: int
    """Tokens that this worker gives a batch now."""


class Embedding:
    """A worker's encoder. Raises `InputError` where the model has other files here than where its recipe was made."""

    def __init__(self, made: Recipe, name: str, batch_tokens: int) -> None:
        if model_digest(resolve_model(name)) != made.weights:
            raise InputError(f"the encoder {name} is not the same everywhere: give each node the same files of it.")
        self._encoder, self._batch_tokens = Encoder(made, name), batch_tokens

    def __call__(self, item: Texts) -> Iterator[Encoded]:
        """The results, a batch at a time."""
        for group, vectors, tokens in self._encoder.encode(item.texts, item.role, self._batch_tokens):
            yield Encoded(item.hashes[group], vectors, tokens, self._encoder.fitting or self._batch_tokens)


def lacking(params: Params, inputs: Mapping[str, Path], vectors: Path) -> list[tuple[Recipe, dict[str, Rows]]]:
    """What a run would have to encode: each encoder, and by role which rows of its table hold a text that is new to it.

    A text that comes several times is wanted once. `vectors` is the root of the vector store.
    """
    found = []
    for made in _recipes(params):
        hashes = {role: _table_hashes(inputs[table], role, made) for role, table in _TABLES.items()}
        found.append((made, _new(hashes, VectorStore(vectors / made.key))[1]))
    return found


def _new(hashes: Mapping[str, Hashes], store: VectorStore) -> tuple[Hashes, dict[str, Rows]]:
    """The distinct texts of both roles; and by role, which rows hold a text that is not stored, each text once."""
    texts, first = unique(np.concatenate(list(hashes.values())))
    new = np.zeros(sum(map(len, hashes.values())), np.bool_)
    new[first[~store.held(texts)]] = True
    return texts, dict(zip(hashes, np.split(new, [len(hashes["query"])]), strict=True))


def intact(inputs: Mapping[str, Path], out: Path, tools: Tools) -> bool:
    """Do the vector stores still hold, undamaged, every vector that this artifact stands for?"""
    parts = encodings(out / "encoding.json")
    texts = np.split(np.load(out / "texts.npy"), np.cumsum([part["texts"] for part in parts])[:-1])
    stores = [VectorStore(tools.vectors / part["encoder"]) for part in parts]
    return all(not store.broken and bool(store.held(hashes).all()) for store, hashes in zip(stores, texts, strict=True))


def _recipes(params: Params) -> list[Recipe]:
    """The encoders, the first one first. Raises `InputError` where two are one and the same."""
    first = recipe(
        params.model,
        params.query_prompt,
        params.document_prompt,
        params.max_length,
        params.dtype,
        params.device,
        params.similarity,
    )
    more = [recipe(model, dtype=params.dtype, device=params.device) for model in params.more_models]
    met = {first.key}
    for other, name in zip(more, params.more_models, strict=True):
        if other.key in met:
            raise InputError(f"more_models: the encoder {name} is there already, so it would find the same again.")
        met.add(other.key)
    return [first, *more]


def _table_texts(path: Path, role: str) -> Iterator[list[str]]:
    """The texts of a table, a bounded number of rows at a time."""
    scan_table(path, _ROLES[role])
    columns = ["query"] if role == "query" else ["text", "title"]
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS, columns=columns):
            yield encoder_texts(pl.DataFrame(pl.from_arrow(batch)), role)


def _table_hashes(path: Path, role: str, made: Recipe) -> Hashes:
    parts = [text_hashes(texts, made.salt(role)) for texts in _table_texts(path, role)]
    return np.concatenate([np.empty((0, 16), np.uint8), *parts])


def _windows(
    path: Path, role: str, wanted: npt.NDArray[np.bool_], hashes: Hashes
) -> Iterator[tuple[list[str], Hashes]]:
    """The wanted rows' texts and hashes, a window of at most _WINDOW at a time."""
    window: list[str] = []
    rows: list[int] = []
    row = 0
    for texts in _table_texts(path, role):
        for offset in np.flatnonzero(wanted[row : row + len(texts)]).tolist():
            window.append(texts[offset])
            rows.append(row + offset)
            if len(window) == _WINDOW:
                yield window, hashes[rows]
                window, rows = [], []
        row += len(texts)
    if window:
        yield window, hashes[rows]


def _describe(made: Recipe, folder: Path) -> None:
    """Say in the encoder's folder, in words, what its name stands for."""
    path = folder / "encoder.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(asdict(made), indent=2, ensure_ascii=False) + "\n"
        replace_synced(path, content.encode(), folder / "encoder.tmp")

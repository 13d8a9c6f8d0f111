"""The encode stage: encode every distinct query and document once, into the vector store of the encoder."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.core.arrays import Bools, Floats
from stages.core.context import StageContext, Summary
from stages.core.errors import InputError
from stages.core.executor import Worker, batch_by_size
from stages.core.files import write_durably
from stages.core.hashing import Hashes, hash_texts, unique_hashes
from stages.core.model_files import model_digest, portable_model_name, resolve_model
from stages.embedding.encoder import Encoder, EncoderSpec, unsupported_similarity
from stages.embedding.encoder_fit import (
    describe_encoder_fit,
    describe_truncation,
)
from stages.embedding.encoder_specs import identify_encoder_server, list_encoder_specs, make_settings_spec
from stages.embedding.fit_measures import measure_encoder_fit
from stages.embedding.lookup import ROLE_TABLES, read_encodings, read_text_blocks, read_text_windows
from stages.embedding.params import Params as Params
from stages.embedding.server_encoder import (
    ServerEncoder,
    find_stored_spec,
    has_unit_length,
)
from stages.embedding.vector_store import BufferedVectorWriter, VectorStore

VERSION = 4

_BATCHES_PER_TASK = 32
"""Batches of an item of work, at four characters per token."""
_MAX_COUNTED_CHARS = 2_048
"""Characters of a text that count for that: most encoders read no more."""


def key_extras(params: Params) -> dict[str, str]:
    """The part of the artifact's key that identifies the models of this machine."""
    extras: dict[str, str] = {}
    for number, spec in enumerate(list_encoder_specs(params), 1):
        if not spec.server:
            suffix = "" if number == 1 else number
            extras |= {f"encoder{suffix}": spec.key, f"model{suffix}": spec.model}
    return extras


def server_key_extras(params: Params, context: StageContext) -> dict[str, str]:
    """The part of the artifact's key that identifies the model behind `url`."""
    if not params.url:
        return {}
    spec = identify_encoder_server(params, context, log=context.progress.log)
    assert spec.server
    identity = {"model": f"{spec} {spec.server.document_model}".strip(), "dimension": str(spec.server.dimension)}
    return {"encoder": spec.key, "probe": spec.weights, **identity}


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Encode the texts of `queries` and `corpus` that are not in the store; write encoder.json and text_hashes.npy.

    encoder.json describes the first encoder, and under "extra_encoders" each of the others.
    text_hashes.npy: the hash of each row's text, the rows of queries before those of corpus, for each encoder: uint8
    [encoders, queries + documents, 16]. It is the key of the vector in the vector store.
    A killed run loses only the vectors after the last flush. Raises `InputError` if a model can't be loaded or gives a
    vector that is not finite.
    """
    names = (params.model, *params.extra_models)
    server = identify_encoder_server(params, context) if params.url else None
    if server and server.similarity == "cosine" and not has_unit_length(server):
        context.progress.log(f"the vectors of {server} do not have length 1; they are scaled to it")
    for name in names if params.similarity == "auto" and not server else params.extra_models:
        if similarity := unsupported_similarity(name):
            context.progress.log(
                f"the encoder {name} declares the {similarity} similarity; cosine is used instead, because search is "
                "by inner product (for vectors of equal length, cosine and euclidean rank equally)"
            )
    results = [
        _encode_tables(spec, name, params.batch_tokens, inputs, context)
        for spec, name in zip(list_encoder_specs(params, server), names, strict=True)
    ]
    (encoding, summary), *more = [(encoding, summary) for encoding, summary, _ in results]
    if more:
        encoding = {**encoding, "extra_encoders": [other for other, _ in more]}
        summary = {
            **summary,
            "extra_encoders": {f"dense{n} {s['model']}": _shorten_summary(s) for n, (_, s) in enumerate(more, 2)},
        }
    (out / "encoder.json").write_text(json.dumps(encoding, indent=2, ensure_ascii=False) + "\n")
    np.save(out / "text_hashes.npy", np.stack([hashes for _, _, hashes in results]))
    return summary


def _shorten_summary(summary: Summary) -> Summary:
    return {name: summary[name] for name in ("n_encoded", "n_cached", "dimension", "encoder_fit")}


def _encode_tables(
    spec: EncoderSpec, model: str, batch_tokens: int, inputs: Mapping[str, Path], context: StageContext
) -> tuple[dict[str, Any], Summary, Hashes]:
    """Encode with one encoder, which the user named `model`: its part of encoder.json, summary and text_hashes.npy."""
    store = VectorStore(context.vectors_dir / spec.key)
    if store.damaged_segments:
        context.progress.log(
            f"{len(store.damaged_segments)} damaged vector files are ignored; their texts are encoded again."
        )
    paths = {role: inputs[table] for role, table in ROLE_TABLES.items()}
    hashes = {role: _hash_table_texts(path, role, spec) for role, path in paths.items()}
    texts, new_rows = _find_new_rows(hashes, store)
    fit = measure_encoder_fit(spec, model, hashes, inputs)
    if not spec.server and fit.documents.pieces_per_word is None and len(texts):
        context.progress.log(
            f"the tokenizer of {spec.model} can't be loaded: whether it knows the texts is not measured"
        )
    for line in (describe_encoder_fit(fit, spec.model), describe_truncation(fit)):
        if line:
            context.progress.log(line)
    n_new = sum(int(rows.sum()) for rows in new_rows.values())
    if n_new:
        _write_encoder_json(spec, store.folder)
        tasks = (
            EncodeTask(role, [window[i] for i in piece], window_hashes[piece])
            for role, path in paths.items()
            for window, window_hashes in read_text_windows(path, role, new_rows[role], hashes[role])
            for piece in batch_by_size(
                [min(len(text), _MAX_COUNTED_CHARS) for text in window], 4 * _BATCHES_PER_TASK * batch_tokens
            )
        )
        context.progress.log(f"{n_new:,} texts to encode with {spec}; {len(texts) - n_new:,} are stored already")
        done = tokens = 0
        max_batch_tokens = batch_tokens
        with BufferedVectorWriter(store) as vector_writer:
            name = model if spec.server else portable_model_name(model)
            worker = Worker(partial(EncodeWorker, spec, name, batch_tokens), spec.device)
            for batch in context.executor.map(worker, tasks):
                vector_writer.add(batch.hashes, batch.vectors)
                done, tokens = done + len(batch.hashes), tokens + batch.tokens
                context.progress.advance(done, n_new, "texts", tokens)
                if batch.max_batch_tokens < max_batch_tokens:
                    max_batch_tokens = batch.max_batch_tokens
                    context.progress.log(
                        f"a batch did not fit into memory: batches have at most {max_batch_tokens:,} tokens from now "
                        f"on. To start with that, set batch_tokens = {max_batch_tokens} under [encode]."
                    )
    encoding = {
        "encoder_key": spec.key,
        "model": spec.model,
        "dimension": store.dimension,
        "queries": len(hashes["query"]),
        "documents": len(hashes["document"]),
        "texts": len(texts),
        "is_normalised": spec.similarity == "cosine",
        "similarity": spec.similarity,
        "dtype": spec.dtype,
        "max_length": spec.max_length,
        "encoder_fit": fit.to_dict(),
    }
    if spec.server:
        encoding["url"] = spec.server.url
    summary = {
        "queries": len(hashes["query"]),
        "documents": len(hashes["document"]),
        "texts": len(texts),
        "n_encoded": n_new,
        "n_cached": len(texts) - n_new,
        "dimension": store.dimension,
        "model": spec.model,
        "encoder_fit": fit.to_dict(),
    }
    return encoding, summary, np.concatenate(list(hashes.values()))


class EncodeTask(NamedTuple):
    """An item of work: texts of one role ("query" or "document") and their hashes, uint8 [n, 16]."""

    role: str
    texts: list[str]
    hashes: Hashes


class EncodedBatch(NamedTuple):
    """A batch's result: hashes, uint8 [b, 16], and vectors, float32 [b, d], of `tokens` tokens in all."""

    hashes: Hashes
    vectors: Floats
    tokens: int
    max_batch_tokens: int
    """Tokens of a batch that this worker uses now."""


class EncodeWorker:
    """A worker's encoder. Raises `InputError` if the model's files differ from those of the spec."""

    def __init__(self, spec: EncoderSpec, model: str, batch_tokens: int) -> None:
        self._batch_tokens = batch_tokens
        if spec.server:
            self._encoder: Encoder | ServerEncoder = ServerEncoder(spec)
            return
        if model_digest(resolve_model(model)) != spec.weights:
            raise InputError(f"the encoder {model} is not the same everywhere: give each node the same files of it.")
        self._encoder = Encoder(spec, model)

    def __call__(self, task: EncodeTask) -> Iterator[EncodedBatch]:
        """The results, a batch at a time."""
        for group, vectors, tokens in self._encoder.encode(task.texts, task.role, self._batch_tokens):
            yield EncodedBatch(
                task.hashes[group], vectors, tokens, self._encoder.max_batch_tokens or self._batch_tokens
            )


def find_missing_texts(
    params: Params, inputs: Mapping[str, Path], store_root: Path
) -> list[tuple[EncoderSpec, dict[str, Bools]]]:
    """The texts that a run would encode: for each encoder, by role, the rows of the table with a new text.

    A repeated text counts once. `store_root` is the root of the vector stores. No request is sent to a server: its last
    identification is used.
    """
    missing = []
    server = find_stored_spec(make_settings_spec(params), store_root) if params.url else None
    for spec in list_encoder_specs(params, server):
        hashes = {role: _hash_table_texts(inputs[table], role, spec) for role, table in ROLE_TABLES.items()}
        missing.append((spec, _find_new_rows(hashes, VectorStore(store_root / spec.key))[1]))
    return missing


def _find_new_rows(hashes: Mapping[str, Hashes], store: VectorStore) -> tuple[Hashes, dict[str, Bools]]:
    """The distinct hashes of both roles, and by role the rows with a text that is not stored, each text once."""
    texts, first = unique_hashes(np.concatenate(list(hashes.values())))
    new = np.zeros(sum(map(len, hashes.values())), np.bool_)
    new[first[~store.contains(texts)]] = True
    return texts, dict(zip(hashes, np.split(new, [len(hashes["query"])]), strict=True))


def has_all_vectors(folder: Path, context: StageContext) -> bool:
    """Whether the vector store holds, undamaged, every vector that the artifact in `folder` refers to."""
    parts = read_encodings(folder / "encoder.json")
    stores = [VectorStore(context.vectors_dir / part["encoder_key"]) for part in parts]
    return all(
        not store.damaged_segments and bool(store.contains(hashes).all())
        for store, hashes in zip(stores, np.load(folder / "text_hashes.npy"), strict=True)
    )


def _hash_table_texts(path: Path, role: str, spec: EncoderSpec) -> Hashes:
    parts = [hash_texts(texts, spec.hash_prefix(role)) for texts in read_text_blocks(path, role)]
    return np.concatenate([np.empty((0, 16), np.uint8), *parts])


def _write_encoder_json(spec: EncoderSpec, folder: Path) -> None:
    """Write the readable form of the encoder's key into its folder."""
    path = folder / "encoder_spec.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(asdict(spec), indent=2, ensure_ascii=False) + "\n"
        write_durably(path, content.encode(), folder / "encoder_spec.tmp")

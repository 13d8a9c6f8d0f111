"""The encode stage: encode every distinct query and document once, into the vector store of the encoder."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import field_validator, model_validator

from stages.core.arrays import Bools, Floats
from stages.core.context import StageContext, Summary
from stages.core.device import Device
from stages.core.errors import InputError
from stages.core.executor import Worker, batch_by_size
from stages.core.files import write_durably
from stages.core.hashing import Hashes, hash_keys, hash_texts, sample_by_hash, unique_hashes
from stages.core.model_files import DEFAULT_ENCODER, model_digest, portable_model_name, resolve_model
from stages.core.params import BaseParams as Base
from stages.core.params import device_option, dtype_option, option
from stages.core.schemas import ANSWERS, QRELS, read_document_texts, read_table
from stages.embedding.encoder import Encoder, EncoderSpec, resolve_encoder_spec, unsupported_similarity
from stages.embedding.encoder_fit import (
    EncoderFit,
    assess_encoder_fit,
    describe_encoder_fit,
    describe_truncation,
    measure_answers_beyond,
    measure_texts,
)
from stages.embedding.lookup import read_encodings, read_text_blocks
from stages.embedding.server_encoder import (
    ServerEncoder,
    ServerUnreachableError,
    find_stored_spec,
    has_unit_length,
    identify_server,
    make_server_spec,
    validate_server_url,
)
from stages.embedding.tokenizer import EncoderTokenizer, load_tokenizer
from stages.embedding.vector_store import BufferedVectorWriter, VectorStore


class Params(Base):
    """The encoder and its settings."""

    # The model's content and name enter the key through `key_extras`, the device through the encoder's key.
    model: str = option(
        DEFAULT_ENCODER,
        "Encoder: a sentence-transformers or Hugging Face model, by folder or hub id; with url, the name that the "
        "server knows it by.",
        is_model=True,
        exclude_from_key=True,
    )
    url: str | None = option(
        None,
        "URL of an OpenAI-compatible API that encodes instead of a model here, such as http://localhost:8000/v1.",
        exclude_from_key=True,
    )
    document_model: str | None = option(
        None, "With url: name of the model for documents, if it is not that for queries.", exclude_from_key=True
    )
    input_type: Literal["", "passage", "document", "search_document"] = option(
        "",
        "With url: input_type of the requests for documents, for servers that tell them from queries by it.",
        exclude_from_key=True,
    )
    query_prompt: str | None = option(None, 'Text before every query, such as "query: ". The model\'s own if unset.')
    document_prompt: str | None = option(
        None, 'Text before every document, such as "passage: ". The model\'s own if unset.'
    )
    max_length: int | None = option(None, "Tokens of a text that are read. The model's own limit if unset.", ge=4)
    similarity: Literal["auto", "cosine", "dot"] = option(
        "auto",
        "How two vectors are compared. auto takes what the model declares, else cosine.",
        advanced=True,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = dtype_option()
    device: Device = device_option()
    extra_models: tuple[str, ...] = option(
        (),
        "More encoders. They are the sources dense2, dense3, ... of search.",
        advanced=True,
        is_model=True,
        exclude_from_key=True,
    )
    batch_tokens: int = option(
        4096,
        "Tokens of a batch. Lower it if memory runs out; the vectors stay the same.",
        advanced=True,
        exclude_from_key=True,
        ge=1,
    )

    @field_validator("url")
    @classmethod
    def _validate_url(cls, given: str | None) -> str | None:
        if given:
            validate_server_url(given)
        return given or None

    @model_validator(mode="after")
    def _check_server(self) -> Self:
        if self.url and not self.model.strip():
            raise ValueError("url needs a model: the name under which the server serves it")
        for name in ("document_model", "input_type"):
            if getattr(self, name) and not self.url:
                raise ValueError(f"{name} needs a url: give that, or leave {name} out")
        if self.url and self.max_length is not None:
            raise ValueError("max_length has no effect with a url: a server cuts texts itself, or set chunk_words")
        return self


VERSION = 4

_SORT_WINDOW_TEXTS = 16_384
"""Texts held in memory at once to be sorted by length."""
_BATCHES_PER_TASK = 32
"""Batches of an item of work, at four characters per token."""
_MAX_COUNTED_CHARS = 2_048
"""Characters of a text that count for that: most encoders read no more."""

_FIT_SAMPLE_TEXTS = 1_000
"""Queries, documents and known answers, each sampled by hash, that say whether the encoder fits."""
_FIT_MAX_CHARS_PER_TOKEN = 12
"""Of a sampled text, for each token that the encoder reads: what comes later is hardly ever read."""
_FIT_MAX_CHARS = 8_192
"""Of a sampled text, if the encoder has no limit."""
_FIT_SAMPLE_CHARS = 4_000_000
"""Characters of all sampled texts of a role."""

_ROLE_TABLES = {"query": "queries", "document": "corpus"}


def key_extras(params: Params) -> dict[str, str]:
    """The part of the artifact's key that identifies the models of this machine."""
    extras: dict[str, str] = {}
    for number, spec in enumerate(_resolve_encoder_specs(params), 1):
        if not spec.server:
            suffix = "" if number == 1 else number
            extras |= {f"encoder{suffix}": spec.key, f"model{suffix}": spec.model}
    return extras


def server_key_extras(params: Params, context: StageContext) -> dict[str, str]:
    """The part of the artifact's key that identifies the model behind `url`."""
    if not params.url:
        return {}
    spec = _identify_server(params, context, log=context.progress.log)
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
    server = _identify_server(params, context) if params.url else None
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
        for spec, name in zip(_resolve_encoder_specs(params, server), names, strict=True)
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
    paths = {role: inputs[table] for role, table in _ROLE_TABLES.items()}
    hashes = {role: _hash_table_texts(path, role, spec) for role, path in paths.items()}
    texts, new_rows = _find_new_rows(hashes, store)
    fit = _measure_encoder_fit(spec, model, hashes, inputs)
    for line in (describe_encoder_fit(fit, spec.model), describe_truncation(fit)):
        if line:
            context.progress.log(line)
    n_new = sum(int(rows.sum()) for rows in new_rows.values())
    if n_new:
        _write_encoder_json(spec, store.folder)
        tasks = (
            EncodeTask(role, [window[i] for i in piece], window_hashes[piece])
            for role, path in paths.items()
            for window, window_hashes in _read_text_windows(path, role, new_rows[role], hashes[role])
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


def _measure_encoder_fit(
    spec: EncoderSpec, model: str, hashes: Mapping[str, Hashes], inputs: Mapping[str, Path]
) -> EncoderFit:
    """What the encoder's tokenizer makes of a sample of the texts; of an encoder behind a URL only scripts and lengths.

    Answers are looked for in their documents if `inputs` has the tables.
    """
    found = None if spec.server else load_tokenizer(resolve_model(model), spec)
    measures = {}
    for role, table in _ROLE_TABLES.items():
        max_tokens = found.count_text_tokens(spec.prompt_for(role)) if found else None
        texts = _sample_texts(inputs[table], role, hashes[role], max_tokens)
        measures[role] = measure_texts(texts, found.tokenizer if found else None, max_tokens)
    n_answers, answers_beyond = _measure_answers(found, spec, inputs) if found else (0, None)
    verdict, reasons = assess_encoder_fit(measures["query"], measures["document"], answers_beyond_share=answers_beyond)
    return EncoderFit(
        verdict,
        reasons,
        measures["query"],
        measures["document"],
        found.max_length if found else None,
        len(unique_hashes(hashes["document"])[0]),
        n_answers,
        answers_beyond,
    )


def _sample_texts(path: Path, role: str, hashes: Hashes, max_tokens: int | None) -> list[str]:
    """Distinct texts of a table, those with the smallest hashes, cut after what no encoder of `max_tokens` reads."""
    texts, first = unique_hashes(hashes)
    mask = np.zeros(len(hashes), np.bool_)
    mask[first[:_FIT_SAMPLE_TEXTS]] = True
    max_chars = _FIT_MAX_CHARS_PER_TOKEN * max_tokens if max_tokens else _FIT_MAX_CHARS
    by_hash = {
        key: text[:max_chars]
        for window, window_hashes in _read_text_windows(path, role, mask, hashes)
        for key, text in zip(hash_keys(window_hashes).tolist(), window, strict=True)
    }
    sampled: list[str] = []
    n_chars = 0
    for key in hash_keys(texts[:_FIT_SAMPLE_TEXTS]).tolist():
        sampled.append(by_hash[key])
        n_chars += len(by_hash[key])
        if n_chars >= _FIT_SAMPLE_CHARS:
            break
    return sampled


def _measure_answers(
    found: EncoderTokenizer, spec: EncoderSpec, inputs: Mapping[str, Path]
) -> tuple[int, float | None]:
    """How many known answers stand in a positive of their query, and the share of them that is not read there."""
    max_tokens = found.count_text_tokens(spec.document_prompt)
    if max_tokens is None or not found.tokenizer.is_fast or not {"answers", "qrels"} <= inputs.keys():
        return 0, None
    answers = read_table(inputs["answers"], ANSWERS)
    sampled = sample_by_hash(answers["query_id"], _FIT_SAMPLE_TEXTS, "encoder_fit")
    qrels = read_table(inputs["qrels"], QRELS).filter(pl.col("relevance") > 0, pl.col("query_id").is_in(sampled))
    pairs = answers.join(qrels, on="query_id").unique(["query_id"], keep="first", maintain_order=True)
    texts = read_document_texts(inputs["corpus"], set(pairs["doc_id"]))
    max_chars = _FIT_MAX_CHARS_PER_TOKEN * max_tokens
    # an answer behind `max_chars` is not read either, so its document is cut behind the answer
    documents = [
        (answer, texts[doc_id][: max(max_chars, texts[doc_id].find(answer) + len(answer))])
        for answer, doc_id in pairs.select("answer", "doc_id").rows()
    ]
    return measure_answers_beyond(documents, found.tokenizer, max_tokens)


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
    server = find_stored_spec(_make_server_spec(params), store_root) if params.url else None
    for spec in _resolve_encoder_specs(params, server):
        hashes = {role: _hash_table_texts(inputs[table], role, spec) for role, table in _ROLE_TABLES.items()}
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


def _make_server_spec(params: Params) -> EncoderSpec:
    return make_server_spec(
        params.url or "",
        params.model,
        params.document_model or "",
        params.input_type,
        params.query_prompt,
        params.document_prompt,
        params.similarity,
    )


def _identify_server(
    params: Params, context: StageContext, log: Callable[[str], None] = lambda message: None
) -> EncoderSpec:
    """The encoder behind `url`. If it is not to be asked or does not answer, what it was when it was last identified.

    Raises `InputError` if it does not answer and was never asked, or answers with nonsense.
    """
    spec = _make_server_spec(params)
    if not context.may_ask_servers:
        return find_stored_spec(spec, context.vectors_dir)
    try:
        return identify_server(spec, context.vectors_dir)
    except ServerUnreachableError as error:
        stored = find_stored_spec(spec, context.vectors_dir)
        if stored == spec:
            raise
        log(f"{error} The vectors that it gave earlier are used.")
        return stored


def _resolve_encoder_specs(params: Params, server: EncoderSpec | None = None) -> list[EncoderSpec]:
    """The encoders, the first one first; with a url that is `server`. Raises `InputError` where two are one and the
    same."""
    if params.url:
        first = server or _make_server_spec(params)
    else:
        first = resolve_encoder_spec(
            params.model,
            params.query_prompt,
            params.document_prompt,
            params.max_length,
            params.dtype,
            params.device,
            params.similarity,
        )
    more = [resolve_encoder_spec(model, dtype=params.dtype, device=params.device) for model in params.extra_models]
    seen_keys = {first.key}
    for other, name in zip(more, params.extra_models, strict=True):
        if other.key in seen_keys:
            raise InputError(f"extra_models: the encoder {name} is given twice. Remove it.")
        seen_keys.add(other.key)
    return [first, *more]


def _hash_table_texts(path: Path, role: str, spec: EncoderSpec) -> Hashes:
    parts = [hash_texts(texts, spec.hash_prefix(role)) for texts in read_text_blocks(path, role)]
    return np.concatenate([np.empty((0, 16), np.uint8), *parts])


def _read_text_windows(
    path: Path, role: str, mask: npt.NDArray[np.bool_], hashes: Hashes
) -> Iterator[tuple[list[str], Hashes]]:
    """The texts and hashes of the rows in `mask`, in windows of at most _SORT_WINDOW_TEXTS."""
    window: list[str] = []
    rows: list[int] = []
    row = 0
    for texts in read_text_blocks(path, role):
        for offset in np.flatnonzero(mask[row : row + len(texts)]).tolist():
            window.append(texts[offset])
            rows.append(row + offset)
            if len(window) == _SORT_WINDOW_TEXTS:
                yield window, hashes[rows]
                window, rows = [], []
        row += len(texts)
    if window:
        yield window, hashes[rows]


def _write_encoder_json(spec: EncoderSpec, folder: Path) -> None:
    """Write the readable form of the encoder's key into its folder."""
    path = folder / "encoder_spec.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(asdict(spec), indent=2, ensure_ascii=False) + "\n"
        write_durably(path, content.encode(), folder / "encoder_spec.tmp")

"""An encoder behind an OpenAI-compatible URL (`/v1/embeddings`): OpenAI, vLLM, TEI, Ollama, LiteLLM and their like.

A server shows no weights. So it is identified by its URL, its models' names and the vector of a probe text. If that
vector is off by more than servers' arithmetic is from call to call, it is another encoder, whose vectors are stored
apart. The vectors of the first probe are kept in the encoder's folder of the vector store, for later runs to compare.
"""

import base64
import binascii
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from stages.core.api_client import APIClient, import_openai, is_api_url
from stages.core.arrays import Floats
from stages.core.errors import InputError
from stages.core.executor import batch_by_size
from stages.embedding.encoder import EncoderSpec, ServerSpec, l2_normalise_vectors

QUERY_INPUT_TYPES = {"passage": "query", "document": "query", "search_document": "search_query"}
"""The `input_type` of documents -> that of queries."""
PROBE_TEXT = "Which document answers this question?"
PROBE_TOLERANCE = 0.03
"""Distance of two probe vectors, as a share of their length, up to which the model counts as the same. bfloat16
instead of float32 makes a difference of 0.014 (a cosine of 0.9999), 4 bit one of 0.14 or more (at most 0.99)."""
KEY_VARIABLES = ("PREP_ENCODE_API_KEY", "OPENAI_API_KEY")

_MAX_BATCH_TEXTS = 64
"""Texts of a request. A server that takes fewer (TEI: 32) refuses the first request, which is then halved."""
_BYTES_PER_TOKEN = 4
_PARALLEL_REQUESTS = 4
_ATTEMPTS, _TIMEOUT_SECONDS = 8, 120.0
"""The waits between eight attempts add up to half a minute, or to what the server's Retry-After asks for."""
_PROBE_ATTEMPTS = 3
_PROBE_VALID_SECONDS = 60.0
_probes: dict[EncoderSpec, tuple[float, Floats | InputError]] = {}
"""When this process last probed a server, and its vectors of the probe, float32 [2, d], or why there are none."""


class ServerUnreachableError(InputError):
    """The server does not answer, or only with failures of its own; another time it may."""


class _UnusableAnswerError(InputError):
    """The server refuses a request or answers it with something else: with fewer texts it may go well."""


def validate_server_url(url: str) -> None:
    """Raise `ValueError`, with what to do, if `url` is none of an API or holds what must not be stored."""
    if not is_api_url(url):
        raise ValueError("this is no URL of an API: give one such as http://localhost:8000/v1")
    if set(url) & set("@?#"):
        raise ValueError(
            "it holds a password or a query, which would be stored with the vectors: give the address alone, and the "
            f"key in the environment's {KEY_VARIABLES[0]}"
        )


def make_server_spec(
    url: str,
    model: str,
    document_model: str = "",
    input_type: str = "",
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    similarity: str = "auto",
) -> EncoderSpec:
    """The encoder of these settings, before it was asked anything: `weights` is empty."""
    url = url.rstrip("/").removesuffix("/embeddings")
    document_model = "" if document_model == model else document_model
    return EncoderSpec(
        model=model,
        weights="",
        query_prompt=query_prompt or "",
        document_prompt=document_prompt or "",
        max_length=None,
        dtype="float32",
        device="cpu",
        similarity="cosine" if similarity == "auto" else similarity,
        routed=bool(document_model or input_type),
        server=ServerSpec(url, document_model, input_type, 0, ()),
    )


def identify_server(spec: EncoderSpec, store_root: Path) -> EncoderSpec:
    """`spec` (of `make_server_spec`) with what the server is now, by its vectors of the probe text.

    It is the encoder of a folder under `store_root` whose probe agrees, else a new one. Raises
    `ServerUnreachableError` if it does not answer, another `InputError` if its answer is of no use.
    """
    vectors = _probe(spec)
    probe = vectors.ravel()
    stored = [(_probe_distance(one, probe), one) for one in _read_stored_specs(spec, store_root)]
    distance, nearest = min(stored, key=lambda pair: pair[0], default=(np.inf, spec))
    if distance <= PROBE_TOLERANCE:
        return nearest
    assert spec.server
    server = replace(spec.server, dimension=vectors.shape[1], probe=tuple(probe.tolist()))
    digest = xxhash.xxh3_128_hexdigest((np.round(probe, 3) + np.float32(0)).tobytes())  # + 0: no -0.0
    return replace(spec, weights=f"probe {digest}", server=server)


def find_stored_spec(spec: EncoderSpec, store_root: Path) -> EncoderSpec:
    """What the server was when its newest folder under `store_root` was made; `spec` itself if there is none."""
    return next(iter(_read_stored_specs(spec, store_root)), spec)


def has_unit_length(spec: EncoderSpec) -> bool:
    """Whether the server's own vectors have length 1, by the probe."""
    assert spec.server
    lengths = np.linalg.norm(np.reshape(spec.server.probe, (2, -1)), axis=1)
    return bool(np.abs(lengths - 1).max() < 1e-3)


def _read_stored_specs(spec: EncoderSpec, store_root: Path) -> list[EncoderSpec]:
    """The encoders in the vector store that differ from `spec` in their probes alone, the newest first."""
    assert spec.server
    paths = sorted(store_root.glob("*/encoder_spec.json"), key=lambda path: -path.stat().st_mtime_ns)
    found = []
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            server = ServerSpec(**content["server"] | {"probe": tuple(content["server"]["probe"])})
            one = EncoderSpec(**content | {"server": server})
        except (OSError, ValueError, TypeError, KeyError):
            continue  # a model on this machine, or a damaged file, whose encoder counts as new
        if _without_identity(one) == spec:
            found.append(one)
    return found


def _without_identity(spec: EncoderSpec) -> EncoderSpec:
    """As `make_server_spec` made it."""
    assert spec.server
    return replace(spec, weights="", server=replace(spec.server, dimension=0, probe=()))


def _probe_distance(spec: EncoderSpec, probe: Floats) -> float:
    assert spec.server
    stored = np.asarray(spec.server.probe, np.float32)
    if stored.shape != probe.shape:
        return np.inf
    return float(np.linalg.norm(stored - probe) / np.linalg.norm(stored))


def _probe(spec: EncoderSpec) -> Floats:
    """The vectors of the probe text as a query and as a document, float32 [2, d]: at most a minute old."""
    asked = _without_identity(spec)
    if asked not in _probes or time.monotonic() - _probes[asked][0] > _PROBE_VALID_SECONDS:
        try:
            found: Floats | InputError = _request_probe(asked)
        except InputError as error:
            found = error
        _probes[asked] = time.monotonic(), found
    _, found = _probes[asked]
    if isinstance(found, InputError):
        raise found
    return found


def _request_probe(spec: EncoderSpec) -> Floats:
    encoder = ServerEncoder(spec, _PROBE_ATTEMPTS)
    query = document = encoder.request_vectors([PROBE_TEXT], "query")[0][0]
    if spec.routed or spec.query_prompt != spec.document_prompt:
        document = encoder.request_vectors([PROBE_TEXT], "document")[0][0]
    if len(query) != len(document):
        raise InputError(
            f"the encoder {spec} gives queries {len(query)} dimensions and documents {len(document)}, so they can't be "
            "compared. Name two models that belong together: model and document_model."
        )
    return np.stack([query, document])


class ServerEncoder:
    """Encodes as `encoder.Encoder` does, by requests to a server.

    The API key is that of the environment (`KEY_VARIABLES`). Requests hold as many texts as the server takes, and four
    are under way at once.
    """

    max_batch_tokens: int | None = None
    """No memory of ours limits a batch."""

    def __init__(self, spec: EncoderSpec, attempts: int = _ATTEMPTS) -> None:
        assert spec.server
        self.spec, self._server = spec, spec.server
        self._client = APIClient(
            spec.server.url, "[encode] url", _TIMEOUT_SECONDS, attempts, key_variables=KEY_VARIABLES
        )
        self._max_texts = _MAX_BATCH_TEXTS

    def encode(
        self, texts: Sequence[str], role: str, batch_tokens: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], Floats, int]]:
        """Yield (positions in `texts`, vectors float32 [b, d], tokens), longest texts first, until all have come.

        `batch_tokens` bounds the tokens of a request, at four bytes each. What has been answered is yielded even if
        another request fails. Raises `InputError`, which names the text.
        """
        if _probe_distance(self.spec, _probe(self.spec).ravel()) > PROBE_TOLERANCE:
            raise InputError(
                f"the encoder {self.spec} gives other vectors than when it was identified: its model was changed. Run "
                "again; all texts are then encoded with the new one."
            )
        max_bytes = _BYTES_PER_TOKEN * batch_tokens
        sizes = [max(len(text.encode()), -(-max_bytes // self._max_texts)) for text in texts]
        batches = list(batch_by_size(sizes, max_bytes))
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
            futures: list[Future[tuple[Floats, int]]] = [
                pool.submit(self.request_vectors, [texts[i] for i in batch], role) for batch in batches
            ]
            failure: InputError | None = None
            try:
                for batch, future in zip(batches, futures, strict=True):
                    try:
                        vectors, tokens = future.result()
                    except CancelledError:
                        continue
                    except InputError as error:
                        failure = failure or error
                        _cancel(futures)
                        continue
                    yield batch, vectors, tokens
            finally:
                _cancel(futures)
            if failure:
                raise failure

    def request_vectors(self, texts: Sequence[str], role: str) -> tuple[Floats, int]:
        """The vectors of these texts, float32 [n, d], and their tokens by the server's count (0 if it gives none).

        A request of several texts that fails on what is in it is put again as two, down to the text that it fails on.
        """
        try:
            return self._send_request(texts, role)
        except _UnusableAnswerError:
            if len(texts) == 1:
                raise
        half = len(texts) // 2
        parts = [self.request_vectors(part, role) for part in (texts[:half], texts[half:])]
        self._max_texts = min(self._max_texts, len(texts) - half)
        if len({vectors.shape[1] for vectors, _ in parts}) > 1:
            raise self._make_error(texts, "vectors of several lengths")
        return np.concatenate([vectors for vectors, _ in parts]), sum(tokens for _, tokens in parts)

    def _send_request(self, texts: Sequence[str], role: str) -> tuple[Floats, int]:
        openai = import_openai()
        is_query, input_type = role == "query", self._server.input_type
        model = self.spec.model if is_query else self._server.document_model or self.spec.model
        fields = {"input_type": QUERY_INPUT_TYPES[input_type] if is_query else input_type} if input_type else {}
        prompt = self.spec.prompt_for(role)
        try:
            raw = self._client.openai.embeddings.with_raw_response.create(
                model=model, input=[prompt + text for text in texts], encoding_format="float", extra_body=fields
            )
        except openai.OpenAIError as error:
            status = getattr(error, "status_code", 0)
            setting = "model" if is_query or not self._server.document_model else "document_model"
            text = f"{_quote(texts)}: {self._client.describe_error(error, setting)}"
            if status in (400, 413, 422) or (status == 500 and len(texts) > 1):
                raise _UnusableAnswerError(
                    f"the encoder {self.spec} refuses {text} If the text is too long for it, cut documents with "
                    "chunk_words under [pairs]."
                ) from error
            is_passing = not status or status in (408, 429) or status >= 500
            raise (ServerUnreachableError if is_passing else InputError)(
                f"the encoder {self.spec} did not encode {text} What it has answered so far is kept."
            ) from error
        return self._parse_answer(raw.http_response.text, texts)

    def _parse_answer(self, body: str, texts: Sequence[str]) -> tuple[Floats, int]:
        try:
            answer = json.loads(body)
            items = answer["data"]
            positions = [item.get("index", position) for position, item in enumerate(items)]
            embeddings = {position: item["embedding"] for position, item in zip(positions, items, strict=True)}
            usage = answer.get("usage") or {}
            tokens = int(usage.get("prompt_tokens") or usage.get("total_tokens") or 0)
        except (ValueError, TypeError, KeyError, AttributeError):
            excerpt = self._client.redact_key(body)[:80]
            raise self._make_error(
                texts, f"{excerpt!r}, which is no list of embeddings. Does url end as the API does (/v1)?"
            ) from None
        if len(items) != len(texts) or embeddings.keys() != set(range(len(texts))):
            raise self._make_error(texts, f"{len(items)} vectors with the numbers {sorted(embeddings, key=str)[:5]}...")
        vectors = [self._parse_vector(embeddings[position], text) for position, text in enumerate(texts)]
        if len({len(vector) for vector in vectors}) > 1:
            raise self._make_error(texts, "vectors of several lengths")
        stacked = np.stack(vectors)
        return l2_normalise_vectors(
            stacked
        ) if self.spec.similarity == "cosine" and self.spec.weights else stacked, tokens

    def _parse_vector(self, embedding: Any, text: str) -> Floats:
        """One vector, given as numbers or as the base64 of little-endian float32."""
        try:
            if isinstance(embedding, str):
                vector = np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
            else:
                vector = np.array(embedding, np.float32)
        except (ValueError, TypeError, binascii.Error):
            raise self._make_error([text], f"{embedding!r:.80}, which is no vector.") from None
        if vector.ndim != 1 or not len(vector):
            raise self._make_error([text], f"{embedding!r:.80}, which is no vector.")
        if not np.isfinite(vector).all():
            raise self._make_error([text], "a vector that is not finite.")
        if not vector.any():
            raise self._make_error([text], "a vector of zeros.")
        if self._server.dimension not in (0, len(vector)):
            raise InputError(
                f"the encoder {self.spec} answers {_quote([text])} with {len(vector)} dimensions, and others with "
                f"{self._server.dimension}. Is one model behind the URL? Once there is, run again."
            )
        return vector

    def _make_error(self, texts: Sequence[str], answer: str) -> _UnusableAnswerError:
        return _UnusableAnswerError(f"the encoder {self.spec} answers {_quote(texts)} with {answer}")


def _cancel(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        future.cancel()


def _quote(texts: Sequence[str]) -> str:
    """The first text, and how many there are."""
    first = f"the text {texts[0][:80]!r} ({len(texts[0]):,} characters)"
    return first if len(texts) == 1 else f"{len(texts)} texts, the first of which is {first}"

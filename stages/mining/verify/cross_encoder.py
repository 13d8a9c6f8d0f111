"""The verifier: a cross-encoder that scores the candidates whose p_false_negative is uncertain.

A cross-encoder is expensive: over 50 candidates a query it costs more than encoding and search together. So it scores
only uncertain candidates and the positives of their queries, and the scores are cached in the workspace.

Its scores are logits. After a loss over groups (listwise, InfoNCE) they are known up to a constant for each query;
after a binary loss their sigmoid is a probability. So only differences between scores of one query are comparable.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import xxhash

from stages.core.arrays import Bools, Floats, compute_log_odds
from stages.core.context import Progress
from stages.core.device import Dtype, pick_device, should_use_bfloat16
from stages.core.errors import InputError
from stages.core.executor import Executor, InProcessExecutor, Worker, batch_by_size
from stages.core.files import write_durably
from stages.core.hashing import Hashes, hash_texts, unique_hashes
from stages.core.model_files import model_digest, model_display_name, portable_model_name, resolve_model
from stages.core.schemas import PAIR_COLUMNS
from stages.embedding.vector_store import BufferedVectorWriter, VectorStore
from stages.reranking.cross_encoder import TextPair

MIN_UNCERTAIN_P, MAX_UNCERTAIN_P = 0.02, 0.9
"""A candidate is uncertain between these: below it is a safe negative, above it would hardly be selected."""

_FORWARD_PASSES_PER_ITEM = 64
"""Forward passes in an item of work, at four characters a token."""
_MAX_PAIR_CHARS = 4_096
"""Characters of a pair that count for it; few cross-encoders read more."""


class CrossEncoderVerifier:
    """A cross-encoder with one output, whose scores are cached in `cache_folder`.

    The cache key is made of the texts, the model's weights, `max_length` (tokens of both texts; None: the model's
    limit), the number format and the kind of device. On the CPU a score depends on nothing else, to the last bit. The
    model is loaded when a pair is not in the cache. Raises `InputError` if `model` is not a cross-encoder or the device
    is missing.
    """

    def __init__(
        self,
        model: str,
        cache_folder: Path,
        device: str,
        max_length: int | None,
        dtype: Dtype,
        progress: Progress,
        executor: Executor | None = None,
    ) -> None:
        from stages.reranking.cross_encoder import has_head

        path = resolve_model(model)
        if not has_head(path):
            raise InputError(
                f"the verifier {model} is an encoder without a ranking head, so it can't score pairs. Use a "
                "cross-encoder (…ForSequenceClassification with one output), such as BAAI/bge-reranker-v2-m3."
            )
        self._device = pick_device(device)
        used_dtype: Dtype = "bfloat16" if should_use_bfloat16(self._device, dtype) else "float32"
        self._progress, self._executor = progress, executor or InProcessExecutor()
        weights_digest = model_digest(path)
        worker_device = self._device.partition(":")[0] if device == "auto" else self._device  # auto: all GPUs
        self._worker = Worker(
            partial(ScoreWorker, portable_model_name(model), weights_digest, self._device, max_length, used_dtype),
            worker_device,
        )
        self.cache_key_parts = {
            "weights": weights_digest,
            "max_length": max_length,
            "dtype": used_dtype,
            "device": self._device.partition(":")[0],
        }
        """Everything beside the texts that a score depends on."""
        self.name = model_display_name(model)
        key = xxhash.xxh3_128_hexdigest(json.dumps(self.cache_key_parts, sort_keys=True).encode())
        self._store = VectorStore(cache_folder / key)
        if self._store.damaged_segments:
            progress.log(
                f"{len(self._store.damaged_segments)} damaged score files are ignored; their pairs are scored again"
            )
        self.counts = {"scored": 0, "cached": 0}
        """Distinct pairs: computed by this object, and found in the cache."""

    def score_pairs(self, pairs: Sequence[TextPair]) -> Floats:
        """The logit of each (query, document): float32 [n].

        New pairs are sorted by length and scored in batches. A kill loses at most a minute of work. Raises `InputError`
        if a score is not finite.
        """
        if not pairs:
            return np.empty(0, np.float32)
        hashes = hash_pairs(pairs)
        distinct, first = unique_hashes(hashes)
        missing = first[~self._store.contains(distinct)]
        if len(missing):
            self._score_new_pairs([pairs[i] for i in missing], hashes[missing])
        self.counts["scored"] += len(missing)
        self.counts["cached"] += len(distinct) - len(missing)
        logits: Floats = self._store.read(hashes)[:, 0]
        return logits

    def _score_new_pairs(self, pairs: Sequence[TextPair], hashes: Hashes) -> None:
        from stages.reranking.cross_encoder import get_tokens_per_pass

        self._write_description()
        sizes = [min(len(query) + len(document), _MAX_PAIR_CHARS) for query, document in pairs]
        items = (
            PairBatch([pairs[i] for i in piece], hashes[piece])
            for piece in batch_by_size(sizes, 4 * _FORWARD_PASSES_PER_ITEM * get_tokens_per_pass(self._device))
        )
        done = 0
        with BufferedVectorWriter(self._store) as buffer:
            for batch_hashes, logits in self._executor.map(self._worker, items):
                buffer.add(batch_hashes, logits[:, None])
                done += len(batch_hashes)
                self._progress.advance(done, len(pairs), "pairs")

    def _write_description(self) -> None:
        """Write the cache key in plain words into the folder."""
        path = self._store.folder / "verifier.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"model": self.name, **self.cache_key_parts}, indent=2, ensure_ascii=False) + "\n"
            write_durably(path, content.encode(), path.with_suffix(".tmp"))


class PairBatch(NamedTuple):
    """An item of work: pairs and their hashes, uint8 [n, 16]."""

    pairs: list[TextPair]
    hashes: Hashes


class ScoreWorker:
    """Scores batches with a cross-encoder. Raises `InputError` if its files do not have the digest `weights_digest`."""

    def __init__(self, model: str, weights_digest: str, device: str, max_length: int | None, dtype: Dtype) -> None:
        from stages.reranking.cross_encoder import load_reranker

        path = resolve_model(model)
        if model_digest(path) != weights_digest:
            raise InputError(
                f"the files of the verifier {model} differ between nodes: copy the same files to each node."
            )
        self._name, self._dtype = model_display_name(model), dtype
        self._model = load_reranker(path, device, max_length)

    def __call__(self, batch: PairBatch) -> Iterator[tuple[Hashes, Floats]]:
        """Hashes and logits of each forward pass, the longest pairs first."""
        from stages.reranking.cross_encoder import count_pair_tokens, iter_pair_scores

        order = np.argsort(-count_pair_tokens(self._model, batch.pairs), kind="stable")
        for places, logits in iter_pair_scores(self._model, [batch.pairs[i] for i in order], self._dtype):
            rows = order[places]
            if not np.isfinite(logits).all():
                query, document = batch.pairs[rows[int(np.argmin(np.isfinite(logits)))]]
                raise InputError(
                    f"the verifier {self._name} gives no finite score for the query {query[:80]!r} and the document "
                    f"{document[:80]!r}. "
                    + ('Use dtype = "float32".' if self._dtype == "bfloat16" else "Are its weights damaged?")
                )
            yield batch.hashes[rows], logits


def hash_pairs(pairs: Sequence[TextPair]) -> Hashes:
    """uint8 [n, 16]; the hash includes the query's length, so that ("a", "bc") and ("ab", "c") differ."""
    return hash_texts(f"{len(query)}:{query}{document}" for query, document in pairs)


def select_uncertain(
    p: Floats,
    low: float = MIN_UNCERTAIN_P,
    high: float = MAX_UNCERTAIN_P,
    max_candidates: int = 0,
    threshold: Floats | float = 0.1,
) -> Bools:
    """The candidates that the verifier should score: low <= p <= high [n]; a NaN is never selected.

    If there are more than `max_candidates` (0: no limit), those nearest to `threshold` in log odds are selected, the
    first of equal ones. There a score is most likely to change the verdict. `threshold` is the highest p of a negative,
    one number or one for each candidate.
    """
    is_uncertain = (p >= low) & (p <= high)
    if not max_candidates or is_uncertain.sum() <= max_candidates:
        return is_uncertain
    distance = np.abs(compute_log_odds(p) - compute_log_odds(np.asarray(threshold, np.float32)))
    nearest = np.argsort(np.where(is_uncertain, distance, np.inf), kind="stable")[:max_candidates]
    out = np.zeros(len(p), np.bool_)
    out[nearest] = True
    return out


def collect_pairs_to_score(rows: pl.DataFrame, positives: pl.DataFrame) -> pl.DataFrame:
    """The distinct pairs of `rows` (query_id, doc_id) and of the positives of their queries, sorted.

    The positives are scored too, because the features are differences from their scores.
    """
    query_positives = positives.select(PAIR_COLUMNS).join(rows.select("query_id").unique(), on="query_id", how="semi")
    return pl.concat([rows.select(PAIR_COLUMNS), query_positives]).unique().sort(PAIR_COLUMNS)


def join_verifier_scores(rows: pl.DataFrame, positives: pl.DataFrame, scored: pl.DataFrame) -> pl.DataFrame:
    """`rows` (query_id, doc_id, ...) with verifier_score, verifier_positive_min and verifier_positive_max (or null).

    `scored` (query_id, doc_id, verifier_score) has a row for each pair of `collect_pairs_to_score`. Minimum and maximum
    are those of the query's `positives`.
    """
    positive_range = (
        scored.join(positives.select(PAIR_COLUMNS), on=PAIR_COLUMNS, how="semi")
        .group_by("query_id")
        .agg(verifier_positive_min=pl.col("verifier_score").min(), verifier_positive_max=pl.col("verifier_score").max())
    )
    joined = rows.join(
        scored.select(*PAIR_COLUMNS, "verifier_score"), on=PAIR_COLUMNS, how="left", maintain_order="left"
    )
    return joined.join(positive_range, on="query_id", how="left", maintain_order="left")

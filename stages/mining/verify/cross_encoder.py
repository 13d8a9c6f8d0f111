"""The teacher: a cross-encoder that reads query and document together, asked only about candidates that p leaves open.

It is dear (over 50 candidates a query it costs more than encoding and search together), so it is asked about a band of
p and about the positives of these queries, and what it said is kept in the workspace: a text pair is scored once.

Its scores are logits. What they mean hangs on how a teacher was trained. After a softmax over groups (listwise,
InfoNCE) a query's logits are known up to a number added to all of them; after a binary loss their sigmoid is a
probability. So the rules that take the difference of two scores (`margin`) read logits, where the added number falls
out, and those that take a share of a score or a fixed score (`perc`, `abs`; NV-Retriever, arXiv 2407.15831, has scores
in 0..1) read sigmoids.
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
"""Below, a candidate is good enough for the usual budget; above, nobody would train on it."""

_FORWARD_PASSES_PER_ITEM = 64
"""Forward passes that an item of work fills, at four characters a token."""
_MAX_PAIR_CHARS = 4_096
"""Characters of a pair that count for that: few cross-encoders read more."""


class CrossEncoderVerifier:
    """A cross-encoder of one output whose scores are kept in `cache_folder`, a folder of this workspace.

    A score is kept under the texts, the model's weights, `max_length` (tokens of both texts; None: the model's own
    limit), the number format and the kind of device; on the CPU it depends on nothing else, to the last bit, and on a
    GPU the first one holds. The model is loaded when a pair comes that was not scored yet. Raises `InputError` where
    `model` is no cross-encoder or the device is not there.
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
                f"the teacher {model} is an encoder without a ranking head, so it can't score a pair. Name a "
                "cross-encoder (…ForSequenceClassification with one output), such as BAAI/bge-reranker-v2-m3."
            )
        self._device = pick_device(device)
        used_dtype: Dtype = "bfloat16" if should_use_bfloat16(self._device, dtype) else "float32"
        self._progress, self._executor = progress, executor or InProcessExecutor()
        weights_digest = model_digest(path)
        worker_device = (
            self._device.partition(":")[0] if device == "auto" else self._device
        )  # by all GPUs that there are
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
        """All that decides what score a pair gets."""
        self.name = model_display_name(model)
        key = xxhash.xxh3_128_hexdigest(json.dumps(self.cache_key_parts, sort_keys=True).encode())
        self._store = VectorStore(cache_folder / key)
        if self._store.damaged_segments:
            progress.log(
                f"{len(self._store.damaged_segments)} damaged files of scores were set aside; their pairs count as new"
            )
        self.counts = {"scored": 0, "cached": 0}
        """Distinct pairs that were asked for: computed now, and known before."""

    def score_pairs(self, pairs: Sequence[TextPair]) -> Floats:
        """The logit of each (query, document): float32 [n], in the order of `pairs`.

        New pairs are computed in the order of their length, over all that is asked at once. A kill loses at most a
        minute. Raises `InputError` where the model gives a score that is not finite.
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
        """Say in the folder, in words, what its name stands for."""
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
    """A worker's cross-encoder. Raises `InputError` where the model's files are not those of the digest
    `weights_digest`."""

    def __init__(self, model: str, weights_digest: str, device: str, max_length: int | None, dtype: Dtype) -> None:
        from stages.reranking.cross_encoder import load_reranker

        path = resolve_model(model)
        if model_digest(path) != weights_digest:
            raise InputError(f"the teacher {model} is not the same everywhere: give each node the same files of it.")
        self._name, self._dtype = model_display_name(model), dtype
        self._model = load_reranker(path, device, max_length)

    def __call__(self, batch: PairBatch) -> Iterator[tuple[Hashes, Floats]]:
        """Hashes and logits, a forward pass at a time, the pairs with the most tokens first."""
        from stages.reranking.cross_encoder import count_pair_tokens, iter_pair_scores

        order = np.argsort(-count_pair_tokens(self._model, batch.pairs), kind="stable")
        for places, logits in iter_pair_scores(self._model, [batch.pairs[i] for i in order], self._dtype):
            rows = order[places]
            if not np.isfinite(logits).all():
                query, document = batch.pairs[rows[int(np.argmin(np.isfinite(logits)))]]
                raise InputError(
                    f"the teacher {self._name} gives no finite score for the query {query[:80]!r} and the document "
                    f"{document[:80]!r}. "
                    + ('Use dtype = "float32".' if self._dtype == "bfloat16" else "Are its weights damaged?")
                )
            yield batch.hashes[rows], logits


def hash_pairs(pairs: Sequence[TextPair]) -> Hashes:
    """uint8 [n, 16]; the query's length stands before it, so that no text can move from one side to the other."""
    return hash_texts(f"{len(query)}:{query}{document}" for query, document in pairs)


def select_uncertain(
    p: Floats,
    low: float = MIN_UNCERTAIN_P,
    high: float = MAX_UNCERTAIN_P,
    max_candidates: int = 0,
    threshold: Floats | float = 0.1,
) -> Bools:
    """Which candidates are unsure enough to ask a teacher about: low <= p <= high [n]; NaN is never.

    Of more than `max_candidates` (0: no cap) those are taken whose log odds lie nearest to those of `threshold`, the p
    (one, or one a candidate) above which a candidate is set aside: there a second opinion turns most verdicts. Of
    equals the first.
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
    """The pairs to ask about: `rows` (query_id, doc_id) and the positives of their queries, each once, sorted.

    The positives are asked about too, so that margins are the teacher's own.
    """
    query_positives = positives.select(PAIR_COLUMNS).join(rows.select("query_id").unique(), on="query_id", how="semi")
    return pl.concat([rows.select(PAIR_COLUMNS), query_positives]).unique().sort(PAIR_COLUMNS)


def join_verifier_scores(rows: pl.DataFrame, positives: pl.DataFrame, scored: pl.DataFrame) -> pl.DataFrame:
    """`rows` (query_id, doc_id, ...) with verifier_score, verifier_positive_min, verifier_positive_max: logits or null.

    `scored` (query_id, doc_id, verifier_score) is of `collect_pairs_to_score`; lowest and best are those of the query's
    `positives`.
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

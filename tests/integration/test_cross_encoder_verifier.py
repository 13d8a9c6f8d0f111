"""The verifier scores each text pair once, and a score depends only on its pair; the selection of uncertain pairs."""

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.core.device import Dtype
from stages.core.errors import InputError
from stages.core.executor import InProcessExecutor, ItemT, ResultT, Worker
from stages.mining.verify import cross_encoder as verifier_module
from stages.mining.verify.cross_encoder import (
    CrossEncoderVerifier,
    collect_pairs_to_score,
    hash_pairs,
    join_verifier_scores,
    select_uncertain,
)
from stages.reranking import cross_encoder
from stages.reranking.cross_encoder import load_reranker, save_reranker
from tests.fakes import RecordedProgress

PAIRS = [(f"q{i % 7}", " ".join("abcdefgh"[(i * j) % 8] for j in range(i % 40 + 1)) + f" {i}") for i in range(200)]
NAN = float("nan")


@pytest.fixture(scope="module")
def cross(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny cross-encoder."""
    folder = tmp_path_factory.mktemp("cross") / "reranker"
    save_reranker(load_reranker(tiny_model, "cpu", seed=3), folder)
    return folder


@pytest.fixture
def scored_batches(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """The pairs of each call of the model."""
    calls: list[list[tuple[str, str]]] = []
    plain = cross_encoder.iter_pair_scores

    def counting(model, pairs, *given, **named):  # type: ignore[no-untyped-def]
        calls.append(list(pairs))
        return plain(model, pairs, *given, **named)

    monkeypatch.setattr(cross_encoder, "iter_pair_scores", counting)
    return calls


def make_verifier(
    model: Path | str, cache: Path, dtype: Dtype = "float32", max_length: int | None = 64
) -> CrossEncoderVerifier:
    return CrossEncoderVerifier(str(model), cache, "cpu", max_length, dtype, RecordedProgress())


def test_scores_are_the_logits(cross: Path, tmp_path: Path) -> None:
    found = make_verifier(cross, tmp_path).score_pairs(PAIRS)
    expected = cross_encoder.score_pairs(load_reranker(cross, "cpu", 64), PAIRS, "float32")
    assert np.array_equal(found, expected)
    assert found.dtype == np.float32
    assert make_verifier(cross, tmp_path / "none").score_pairs([]).shape == (0,)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("given", "found", "shared"), [("auto", "cuda:0", "cuda"), ("cuda:0", "cuda:0", "cuda:0")])
def test_device_auto_means_all_gpus(
    cross: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, found: str, shared: str
) -> None:
    class Spy(InProcessExecutor):
        def map(self, worker: Worker[ItemT, ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
            raise InputError(f"on {worker.device}")

    monkeypatch.setattr(verifier_module, "pick_device", {given: found}.__getitem__)
    made = CrossEncoderVerifier(str(cross), tmp_path, given, 64, "float32", RecordedProgress(), Spy())
    with pytest.raises(InputError, match=f"^on {shared}$"):
        made.score_pairs(PAIRS)


def test_a_pair_is_scored_once(cross: Path, tmp_path: Path, scored_batches: list[list[tuple[str, str]]]) -> None:
    verifier = make_verifier(cross, tmp_path)
    first = verifier.score_pairs([*PAIRS[:50], *PAIRS[:50]])
    assert verifier.counts == {"scored": 50, "cached": 0}
    assert np.array_equal(first[:50], first[50:])
    other = make_verifier(cross, tmp_path)
    again = other.score_pairs(PAIRS[40:60])
    assert other.counts == {"scored": 10, "cached": 10}
    assert np.array_equal(again[:10], first[40:50])
    assert [len(call) for call in scored_batches] == [50, 10]
    make_verifier(cross, tmp_path).score_pairs(PAIRS[:60])
    assert len(scored_batches) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_score_does_not_depend_on_the_batch(cross: Path, tmp_path: Path, dtype: Dtype) -> None:
    together = make_verifier(cross, tmp_path / "together", dtype).score_pairs(PAIRS)
    order = np.random.default_rng(0).permutation(len(PAIRS))
    pieces = make_verifier(cross, tmp_path / "pieces", dtype)
    for part in np.array_split(order, [1, 3, 90]):
        assert np.array_equal(pieces.score_pairs([PAIRS[i] for i in part]), together[part])
    assert len(np.unique(together)) > 100


def test_the_longest_pairs_are_scored_first(
    cross: Path, tmp_path: Path, scored_batches: list[list[tuple[str, str]]]
) -> None:
    make_verifier(cross, tmp_path).score_pairs(PAIRS)
    counts = cross_encoder.count_pair_tokens(load_reranker(cross, "cpu", 64), scored_batches[0])
    assert counts.tolist() == sorted(counts, reverse=True)
    assert (counts.min(), counts.max()) == (7, 48)


def test_weights_max_length_and_dtype_are_in_the_cache_key(cross: Path, tiny_model: Path, tmp_path: Path) -> None:
    save_reranker(load_reranker(tiny_model, "cpu", seed=4), tmp_path / "other")
    scores = {
        make_verifier(model, tmp_path / "cache", dtype, length).score_pairs(PAIRS[30:31]).item()
        for model, dtype, length in (
            (cross, "float32", 64),
            (tmp_path / "other", "float32", 64),
            (cross, "bfloat16", 64),
            (cross, "float32", 12),
        )
    }
    assert len(scores) == 4
    assert len(list((tmp_path / "cache").glob("*/verifier.json"))) == 4


def test_hashes_separate_query_and_document() -> None:
    hashes = hash_pairs([("a", "bc"), ("ab", "c"), ("", "abc"), ("1:a", ""), ("a", "bc")])
    assert len(np.unique(hashes, axis=0)) == 4
    assert np.array_equal(hashes[0], hashes[4])


def test_pairs_of_a_damaged_file_are_scored_again(cross: Path, tmp_path: Path) -> None:
    whole = make_verifier(cross, tmp_path).score_pairs(PAIRS)
    (segment,) = tmp_path.glob("*/*.npy")
    segment.write_bytes(segment.read_bytes()[:-3])
    progress = RecordedProgress()
    again = CrossEncoderVerifier(str(cross), tmp_path, "cpu", 64, "float32", progress)
    assert "1 damaged score files" in progress.messages[0]
    assert np.array_equal(again.score_pairs(PAIRS), whole)
    assert again.counts["scored"] == len(PAIRS)


def test_a_model_that_is_no_cross_encoder_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without a ranking head"):
        make_verifier(tiny_model, tmp_path)
    with pytest.raises(InputError, match="no model folder at /no/such"):
        make_verifier("/no/such", tmp_path)
    with pytest.raises(InputError, match="name a model"):
        make_verifier("", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is not a model"):
        make_verifier(tmp_path / "empty", tmp_path)


def test_a_score_that_is_not_finite_is_an_error(cross: Path, tmp_path: Path) -> None:
    model = load_reranker(cross, "cpu")
    model.model.classifier.bias.data.fill_(NAN)
    save_reranker(model, tmp_path / "broken")
    with pytest.raises(InputError, match=r"verifier broken gives no finite score .* Are its weights damaged"):
        make_verifier(tmp_path / "broken", tmp_path / "cache").score_pairs(PAIRS)
    assert not list((tmp_path / "cache").glob("*/*.npy"))


def test_uncertain_candidates_by_hand() -> None:
    p = np.array([0.01, 0.02, 0.05, 0.2, 0.9, 0.95, NAN], np.float32)
    assert select_uncertain(p).tolist() == [False, True, True, True, True, False, False]
    # log odds -3.9, -2.9, -1.4, 2.2; of 0.1: -2.2
    assert np.flatnonzero(select_uncertain(p, max_candidates=2)).tolist() == [2, 3]
    assert np.flatnonzero(select_uncertain(p, max_candidates=1)).tolist() == [2]
    assert np.flatnonzero(select_uncertain(p, max_candidates=1, threshold=np.full(7, 0.8, np.float32))).tolist() == [4]
    assert np.flatnonzero(select_uncertain(p, 0.0, 1.0)).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.flatnonzero(select_uncertain(np.full(4, 0.5, np.float32), max_candidates=3)).tolist() == [0, 1, 2]


def test_positives_of_the_queries_are_scored_too() -> None:
    rows = pl.DataFrame({"query_id": ["b", "a", "a"], "doc_id": ["x", "y", "x"], "p": [0.1, 0.2, 0.3]})
    positives = pl.DataFrame({"query_id": ["a", "a", "c"], "doc_id": ["p", "q", "p"]})
    pairs = collect_pairs_to_score(rows, positives)
    assert pairs.rows() == [("a", "p"), ("a", "q"), ("a", "x"), ("a", "y"), ("b", "x")]
    scored = pairs.with_columns(verifier_score=pl.Series([3.0, 1.0, 2.0, -1.0, 0.5]))
    joined = join_verifier_scores(rows.vstack(rows.head(1).with_columns(doc_id=pl.lit("z"))), positives, scored)
    assert joined.select(
        "query_id", "doc_id", "verifier_score", "verifier_positive_min", "verifier_positive_max"
    ).rows() == [
        ("b", "x", 0.5, None, None),
        ("a", "y", -1.0, 1.0, 3.0),
        ("a", "x", 2.0, 1.0, 3.0),
        ("b", "z", None, None, None),
    ]


if __name__ == "__main__":
    from stages.mining.verify import cross_encoder as module

    class KillingProgress(RecordedProgress):
        """Kills the process when some of the scores are on disk and some are not."""

        def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
            if done > 120:
                os.kill(os.getpid(), signal.SIGKILL)

    plain = module.BufferedVectorWriter
    module.BufferedVectorWriter = lambda store: plain(store, max_texts=40)  # type: ignore[assignment,misc]
    CrossEncoderVerifier(sys.argv[1], Path(sys.argv[2]), "cpu", 64, "float32", KillingProgress()).score_pairs(PAIRS)

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.retrieval.exact.packed_hits import NO_HIT, pack_hits, remap_hits, unpack_documents, unpack_scores


def row(*pairs: tuple[int, float]) -> np.ndarray:
    places, scores = zip(*pairs, strict=True)
    return pack_hits(np.array(places), np.array(scores, np.float32))


def test_packed_hits_ascend_in_rank_order() -> None:
    ranked = row((5, np.inf), (2, 1.5), (9, 1.5), (0, 1e-40), (1, 0), (3, -1e-40), (4, -1), (0, -np.inf))
    assert (np.diff(ranked.astype(object)) > 0).all()
    assert ranked.max() < NO_HIT
    assert unpack_documents(ranked).tolist() == [5, 2, 9, 0, 1, 3, 4, 0]
    assert row((1, -0.0)) == row((1, 0.0))


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(width=32, allow_nan=False)), min_size=2))
def test_packing_keeps_score_and_position_exactly(pairs: list[tuple[int, float]]) -> None:
    made = row(*pairs)
    assert unpack_documents(made).tolist() == [place for place, _ in pairs]
    assert (
        unpack_scores(made).tobytes() == (np.array([score for _, score in pairs], np.float32) + np.float32(0)).tobytes()
    )
    assert unpack_documents(np.sort(made)).tolist() == [
        p for p, _ in sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
    ]


def test_remapping_drops_removed_documents() -> None:
    old = np.array([[*row((2, 3), (0, 2), (1, 1)), NO_HIT]])
    after = remap_hits(old, np.array([1, -1, 0]))
    assert after.tolist() == [[*row((0, 3), (1, 2)).tolist(), int(NO_HIT), int(NO_HIT)]]

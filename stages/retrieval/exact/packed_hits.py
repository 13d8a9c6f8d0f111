"""Search hits as sortable numbers: the score and the position of a document packed into one uint64."""

import numpy as np
import numpy.typing as npt

from stages.core.arrays import Floats, Ints

PackedHits = npt.NDArray[np.uint64]
"""Hits whose ascending order is the ranking: higher score first, then lower document position."""
NO_HIT = np.uint64(2**64 - 1)
"""Fills rows that have fewer hits than others. It sorts after every hit, because no number has its score bits."""
_DOCUMENT_BITS = np.uint64(2**32 - 1)


def pack_hits(documents: Ints, scores: Floats) -> PackedHits:
    """Pack document positions (below 2^32) and their scores, finite or infinite. -0 and 0 are the same score."""
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 + 0 = 0
    descending = np.where(bits >> np.uint32(31), bits, ~(bits | np.uint32(1 << 31)))
    return descending.astype(np.uint64) << np.uint64(32) | documents.astype(np.uint64)


def unpack_documents(hits: PackedHits) -> Ints:
    """The document positions of `hits`; meaningless for `NO_HIT`."""
    return (hits & _DOCUMENT_BITS).astype(np.int64)


def unpack_scores(hits: PackedHits) -> Floats:
    """The scores of `hits`, exactly as they were packed; NaN for `NO_HIT`."""
    descending = (hits >> np.uint64(32)).astype(np.uint32)
    bits = np.where(descending >> np.uint32(31), descending, ~descending & np.uint32((1 << 31) - 1))
    return bits.view(np.float32)


def remap_hits(hits: PackedHits, new_positions: Ints) -> PackedHits:
    """Replace each document position p with `new_positions[p]`; -1 there means removed, and gives `NO_HIT`.

    The result is not sorted.
    """
    is_hit = hits != NO_HIT
    target = np.full(hits.shape, -1)
    target[is_hit] = new_positions[unpack_documents(hits[is_hit])]
    return np.where(target < 0, NO_HIT, hits & ~_DOCUMENT_BITS | np.maximum(target, 0).astype(np.uint64))

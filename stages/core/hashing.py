"""Hashes of texts, and random numbers that depend on a key and never on its position."""

import heapq
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import xxhash

Hashes = npt.NDArray[np.uint8]
"""Digests of texts, 16 bytes each: [n, 16]."""


def stable_hash(seed: int, purpose: str, key: str) -> int:
    """A random 64-bit number for `key`: independent, in practice, of those of other keys, purposes and seeds."""
    return xxhash.xxh3_64_intdigest(f"{seed}:{purpose}:{key}".encode())


def sample_by_hash(ids: Iterable[str], n: int, purpose: str, seed: int = 0) -> list[str]:
    """At most `n` of the ids, each once, those with the smallest `stable_hash` first.

    An id stays in the sample when others come or go, as far as `n` allows.
    """
    return heapq.nsmallest(n, dict.fromkeys(ids), key=lambda one: (stable_hash(seed, purpose, one), one))


def hash_texts(texts: Iterable[str], prefix: str = "") -> Hashes:
    """xxh3-128 of `prefix + text` for each text: uint8 [n, 16]."""
    digests = b"".join(xxhash.xxh3_128_digest((prefix + text).encode()) for text in texts)
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)


def unique_hashes(hashes: Hashes) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """The distinct rows of uint8 [n, 16] in byte order, and the position of each one's first occurrence."""
    keys, first = np.unique(hash_keys(hashes), return_index=True)
    return np.ascontiguousarray(keys).view(np.uint8).reshape(-1, 16), first


def hash_keys(hashes: Hashes) -> npt.NDArray[np.bytes_]:
    """Hashes, uint8 [n, 16], as numpy byte strings [n], which numpy compares and sorts as whole keys."""
    # numpy ignores trailing zero bytes, but strings of one length are equal to it exactly if they are equal
    return np.ascontiguousarray(hashes).view("S16").reshape(-1)

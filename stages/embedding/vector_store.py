"""The vector store: append-only segments of (text hash, vector) in a folder for each encoder.

A segment is a memory-mapped .npy file of records (16 bytes of hash, `dimension` float32). Its name is the xxh3-128 of
its bytes, so a damaged segment is detected. A segment is written to `segment.tmp`, synced and renamed, by one writer at
a time (the workspace lock ensures that); the next append overwrites a file that a killed run left.
"""

import io
import itertools
import mmap
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from stages.core.arrays import Floats
from stages.core.files import file_digest, write_durably
from stages.core.hashing import Hashes, hash_keys, unique_hashes

_MAX_MAPPED_BYTES = 512 << 20
"""If the segments are larger, their pages are released after each read. The system still caches them, but they do not
count as memory of this process."""

_COPY_BATCH_VECTORS = 2_048
"""Vectors copied at once: the intermediate array fits into the CPU's cache."""


class VectorStore:
    """Vectors of one encoder by text hash. A folder that does not exist is an empty store.

    Every segment is verified when the store is opened. `damaged_segments` names those with another digest or content.
    They are renamed to `*.broken`, so their texts count as missing and are encoded again.

    A hash is stored once: `append` skips hashes that are stored. If two segments have the same hash (two folders were
    copied into one), the segment whose name sorts first is used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged_segments: list[str] = []
        self.segment_names: list[str] = []
        """The segments' names. A segment never changes."""
        self._segments: list[npt.NDArray[np.void]] = []
        self._n_bytes = 0
        self.dimension = 0
        """Length of the vectors; 0 while the store is empty."""
        for path in sorted(folder.glob("*.npy")):
            self._open_segment(path)
        self._build_index()

    def __len__(self) -> int:
        """The number of distinct texts."""
        return len(self._sorted_keys)

    def contains(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of uint8 [n, 16] are stored: bool [n]."""
        return self._search_index(hashes)[1]

    def append(self, hashes: Hashes, vectors: Floats) -> int:
        """Store vectors [n, d] under hashes [n, 16] as one new segment; returns how many were new.

        The first vector of a repeated hash is kept. When this returns, the vectors are on disk. Raises `ValueError` if
        the lengths or the dimension differ.
        """
        if len(hashes) != len(vectors) or vectors.ndim != 2:
            raise ValueError(f"{len(hashes)} hashes for vectors of shape {vectors.shape}")
        if self.dimension not in (0, vectors.shape[1]):
            raise ValueError(f"vectors of dimension {vectors.shape[1]} in a store of dimension {self.dimension}")
        first = np.sort(unique_hashes(hashes)[1])
        new = first[~self.contains(hashes[first])]
        if not len(new):
            return 0
        records = np.empty(len(new), dtype=[("hash", "S16"), ("vector", "<f4", (vectors.shape[1],))])
        records["hash"] = hash_keys(hashes[new])
        records["vector"] = vectors[new]
        self._open_segment(self._write_segment(records))
        self._insert_keys(records["hash"])
        return len(new)

    def read(self, hashes: Hashes) -> Floats:
        """The vectors of uint8 [n, 16], in that order: a new array, float32 [n, d].

        Raises `KeyError` if one is not stored.
        """
        return self.read_at(self.locate(hashes))

    def locate(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        """The positions of the vectors of uint8 [n, 16], for `read_at`: [n]. A later `append` does not change them.

        Raises `KeyError` if one is not stored.
        """
        row, found = self._search_index(hashes)
        if not found.all():
            raise KeyError(f"{(~found).sum()} of {len(found)} texts have no vector in {self.folder}")
        return self._positions[row]

    def read_at(self, positions: npt.NDArray[np.int64]) -> Floats:
        """The vectors at `positions` [n], in that order: a new array, float32 [n, d]."""
        out = np.empty((len(positions), self.dimension), np.float32)
        order = np.argsort(positions, kind="stable")
        # read segment by segment in the order of the file, which is faster on a disk
        cuts = np.searchsorted(positions[order], self._segment_starts)
        for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
            if begin == end:
                continue
            stored = self._segments[number]["vector"]
            for start in range(begin, end, _COPY_BATCH_VECTORS):
                part = order[start : min(start + _COPY_BATCH_VECTORS, end)]
                out[part] = stored[positions[part] - self._segment_starts[number]]
            self._release_pages(self._segments[number])
        return out

    def _search_index(self, hashes: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        keys = hash_keys(hashes)
        if not len(self._sorted_keys):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
        row = np.minimum(np.searchsorted(self._sorted_keys, keys), len(self._sorted_keys) - 1)
        return row, self._sorted_keys[row] == keys

    def _open_segment(self, path: Path) -> None:
        try:
            if file_digest(path) != path.stem:
                raise ValueError("the content has another digest")
            records = np.load(path, mmap_mode="r")
            dimension = records.dtype["vector"].shape[0]
            if self.dimension not in (0, dimension):
                raise ValueError("another dimension")
        except (ValueError, KeyError, EOFError):
            path.replace(path.with_suffix(".broken"))
            self.damaged_segments.append(path.name)
            return
        self.dimension = dimension
        self._n_bytes += records.nbytes
        self._segments.append(records)
        self.segment_names.append(path.stem)

    def _build_index(self) -> None:
        """Sorted distinct hashes, and the position of each in the concatenated segments."""
        self._segment_starts = np.cumsum([0] + [len(segment) for segment in self._segments])
        keys = [np.empty(0, "S16")]
        for segment in self._segments:
            keys.append(segment["hash"].copy())
            self._release_pages(segment)
        self._sorted_keys, self._positions = np.unique(np.concatenate(keys), return_index=True)

    def _release_pages(self, segment: npt.NDArray[np.void]) -> None:
        mapped = segment.base
        if self._n_bytes > _MAX_MAPPED_BYTES and isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def _insert_keys(self, keys: npt.NDArray[np.bytes_]) -> None:
        """Add the hashes of a new last segment to the index without sorting all of it again."""
        end = self._segment_starts[-1]
        self._segment_starts = np.append(self._segment_starts, end + len(keys))
        order = np.argsort(keys)
        rows = np.searchsorted(self._sorted_keys, keys[order])
        self._sorted_keys = np.insert(self._sorted_keys, rows, keys[order])
        self._positions = np.insert(self._positions, rows, end + order)

    def _write_segment(self, records: npt.NDArray[np.void]) -> Path:
        buffer = io.BytesIO()
        np.save(buffer, records, allow_pickle=False)
        content = buffer.getbuffer()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{xxhash.xxh3_128_hexdigest(content)}.npy"
        write_durably(path, content, self.folder / "segment.tmp")
        return path


class BufferedVectorWriter:
    """Appends vectors to a store after `max_texts` or `max_seconds`, so that a killed run loses little.

    A context manager: it appends the rest at its end, also after an exception.
    """

    def __init__(self, store: VectorStore, max_texts: int = 4_096, max_seconds: float = 60.0) -> None:
        self._store, self._max_texts, self._max_seconds = store, max_texts, max_seconds
        self._clear()

    def add(self, hashes: Hashes, vectors: Floats) -> None:
        """Add vectors [n, d] with hashes [n, 16]."""
        self._pending.append((hashes, vectors))
        if sum(len(part) for part, _ in self._pending) >= self._max_texts or time.monotonic() >= self._flush_time:
            self.flush()

    def flush(self) -> None:
        """Append the pending vectors."""
        if self._pending:
            self._store.append(*map(np.concatenate, zip(*self._pending, strict=True)))
        self._clear()

    def _clear(self) -> None:
        self._pending: list[tuple[Hashes, Floats]] = []
        self._flush_time = time.monotonic() + self._max_seconds

    def __enter__(self) -> "BufferedVectorWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

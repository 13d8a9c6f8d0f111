"""Each query's list of best documents as the last search left it, kept beside the vectors that it was computed from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.core.arrays import Ints
from stages.core.files import file_digest, write_durably
from stages.core.hashing import Hashes, hash_keys
from stages.retrieval.exact.packed_hits import NO_HIT, PackedHits


class TopKCache:
    """The lists of one encoder's queries [q, width], on disk; each is the exact top of its query's ranking.

    A row ends where no more is known, which is the end of the corpus or what earlier changes have left of it.
    """

    def __init__(self, document_keys: npt.NDArray[np.bytes_], records: npt.NDArray[np.void]) -> None:
        self.document_keys = document_keys
        """What the corpus held, in its order: whatever identifies a document and its vector, 16 bytes each."""
        self._records = records
        self._order = np.argsort(records["query_hash"], kind="stable")

    def find_rows(self, query_hashes: Hashes) -> Ints:
        """The rows of queries given by the hash of their text: int64 [n], -1 where there is none."""
        keys = hash_keys(query_hashes)
        if not len(self._records):
            return np.full(len(keys), -1)
        sorted_keys = self._records["query_hash"][self._order]
        at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
        return np.where(sorted_keys[at] == keys, self._order[at], -1)

    def read_rows(self, rows: Ints) -> PackedHits:
        """Some rows, uint64 [n, width], filled up with NONE."""
        found: PackedHits = self._records["hits"][rows]
        return found


TOPK_CACHE_FOLDER = "topk_cache"
"""Beside the vectors of the encoder: the folder of its queries' best documents."""


def read_topk_cache(folder: Path, code_versions: Mapping[str, Any], segments: Sequence[str]) -> TopKCache | None:
    """The lists in `folder`, or None where there are none, they are damaged, or can't be relied on.

    `code_versions` must be what they were written with, and of the vectors' segments none may have gone since: what was
    encoded again need not be the same to the bit on every device.
    """
    try:
        metadata = json.loads((folder / "topk_cache.json").read_text(encoding="utf-8"))
        paths = [folder / f"{metadata[name]}.npy" for name in ("document_keys", "hits")]
        if metadata["code_versions"] != code_versions or not set(metadata["segments"]) <= set(segments):
            return None
        if any(file_digest(path) != path.stem for path in paths):
            return None
        return TopKCache(np.load(paths[0]), np.load(paths[1], mmap_mode="r"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class TopKWriter:
    """Lists on their way to disk: rows in any order, then `commit`, which puts them in the place of those
    before."""

    def __init__(self, folder: Path, query_hashes: Hashes, width: int) -> None:
        self._folder, self._query_keys, self._width = folder, hash_keys(query_hashes), width
        self._dtype = np.dtype([("query_hash", "S16"), ("hits", "<u8", (width,))])
        folder.mkdir(parents=True, exist_ok=True)
        # Written, not memory-mapped: a full disk then is an error and not the end of the process.
        self._file = (folder / "hits.tmp").open("wb")
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (len(query_hashes),),
        }
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()

    def write_rows(self, rows: Ints, hits: PackedHits) -> None:
        """Write the lists [n, up to width] of some rows, which rise."""
        records = np.empty(len(rows), self._dtype)
        records["query_hash"] = self._query_keys[rows]
        records["hits"] = NO_HIT
        records["hits"][:, : hits.shape[1]] = hits
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
            if len(run):
                self._file.seek(self._start + int(rows[run[0]]) * self._dtype.itemsize)
                self._file.write(records[run[0] : run[-1] + 1].data)

    def commit(
        self, document_keys: npt.NDArray[np.bytes_], code_versions: Mapping[str, Any], segments: Sequence[str]
    ) -> TopKCache:
        """Make this the folder's lists. Before, every row must have been put."""
        self._file.close()
        with (self._folder / "document_keys.tmp").open("wb") as file:
            np.save(file, document_keys)
        metadata: dict[str, Any] = {"code_versions": code_versions, "segments": list(segments)}
        for name in ("document_keys", "hits"):
            partial = self._folder / f"{name}.tmp"
            metadata[name] = file_digest(partial)
            partial.replace(self._folder / f"{metadata[name]}.npy")
        content = json.dumps(metadata, indent=1).encode()
        write_durably(self._folder / "topk_cache.json", content, self._folder / "topk_cache.json.tmp")
        for path in self._folder.glob("*.npy"):
            if path.stem not in (metadata["document_keys"], metadata["hits"]):
                path.unlink()
        return TopKCache(document_keys, np.load(self._folder / f"{metadata['hits']}.npy", mmap_mode="r"))

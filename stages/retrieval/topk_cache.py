"""The top-k lists of the last search, stored beside the vectors that they were computed from."""

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
    """The lists of one encoder's queries [q, width], on disk; each is the exact top of the ranking.

    A row is shorter than `width` if the corpus is small, or if earlier changes removed documents from it.
    """

    def __init__(self, document_keys: npt.NDArray[np.bytes_], records: npt.NDArray[np.void]) -> None:
        self.document_keys = document_keys
        """The keys of the documents (16 bytes each) in the order of the corpus that was searched."""
        self._records = records
        self._order = np.argsort(records["query_hash"], kind="stable")

    def find_rows(self, query_hashes: Hashes) -> Ints:
        """The rows of queries by the hash of their text: int64 [n], -1 for unknown queries."""
        keys = hash_keys(query_hashes)
        if not len(self._records):
            return np.full(len(keys), -1)
        sorted_keys = self._records["query_hash"][self._order]
        index = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
        return np.where(sorted_keys[index] == keys, self._order[index], -1)

    def read_rows(self, rows: Ints) -> PackedHits:
        """Some rows, uint64 [n, width], padded with `NO_HIT`."""
        hits: PackedHits = self._records["hits"][rows]
        return hits


TOPK_CACHE_FOLDER = "topk_cache"
"""Beside the vectors of the encoder: the folder of its queries' best documents."""


def read_topk_cache(folder: Path, code_versions: Mapping[str, Any], segments: Sequence[str]) -> TopKCache | None:
    """The lists in `folder`; None if there are none, or if they are damaged or out of date.

    They are out of date if `code_versions` differ, or if a segment of the vectors is gone: texts that are encoded again
    can get vectors with other bits on another device.
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
    """Writes lists: rows in any order, then `commit`, which replaces the previous lists."""

    def __init__(self, folder: Path, query_hashes: Hashes, width: int) -> None:
        self._folder, self._query_keys, self._width = folder, hash_keys(query_hashes), width
        self._dtype = np.dtype([("query_hash", "S16"), ("hits", "<u8", (width,))])
        folder.mkdir(parents=True, exist_ok=True)
        # Written, not memory-mapped: a full disk is then an error and does not end the process.
        self._file = (folder / "hits.tmp").open("wb")
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (len(query_hashes),),
        }
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()

    def write_rows(self, rows: Ints, hits: PackedHits) -> None:
        """Write the lists [n, up to width] of some rows, which are ascending."""
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
        """Replace the folder's lists. Every row must have been written before."""
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

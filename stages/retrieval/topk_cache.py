"""Each query's list of best documents as the last search left it, kept beside the vectors that it was computed from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.core.model_files import file_digest
from stages.embedding.vector_store import Hashes, replace_synced
from stages.retrieval.results import Floats, Ids

Entries = npt.NDArray[np.uint64]
"""Entries of lists as numbers whose rising order is the ranking: score falling, then place in the corpus."""
NONE = np.uint64(2**64 - 1)
"""What fills a list that is shorter than others; after every entry (its score would not be a number)."""
_PLACE = np.uint64(2**32 - 1)


def entries(places: Ids, scores: Floats) -> Entries:
    """Documents at `places` (below 2^32) with their scores, finite or infinite, as entries; -0 and 0 are one score."""
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 + 0 = 0
    falling = np.where(bits >> np.uint32(31), bits, ~(bits | np.uint32(1 << 31)))
    return falling.astype(np.uint64) << np.uint64(32) | places.astype(np.uint64)


def places_of(made: Entries) -> Ids:
    """The documents' places."""
    return (made & _PLACE).astype(np.int64)


def scores_of(made: Entries) -> Floats:
    """The documents' scores, to the bit."""
    falling = (made >> np.uint64(32)).astype(np.uint32)
    bits = np.where(falling >> np.uint32(31), falling, ~falling & np.uint32((1 << 31) - 1))
    return bits.view(np.float32)


def moved(made: Entries, to: Ids) -> Entries:
    """The entries with place p turned into `to[p]`, in which -1 stands for a document that is gone: NONE, as NONE is.

    Order is not restored: sort the result.
    """
    there = made != NONE
    target = np.full(made.shape, -1)
    target[there] = to[places_of(made[there])]
    return np.where(target < 0, NONE, made & ~_PLACE | np.maximum(target, 0).astype(np.uint64))


class Lists:
    """The lists of one encoder's queries [q, width], on disk; each is the exact top of its query's ranking.

    A row ends where no more is known, which is the end of the corpus or what earlier changes have left of it.
    """

    def __init__(self, documents: npt.NDArray[np.bytes_], records: npt.NDArray[np.void]) -> None:
        self.documents = documents
        """What the corpus held, in its order: whatever identifies a document and its vector, 16 bytes each."""
        self._records = records
        self._order = np.argsort(records["query"], kind="stable")

    @property
    def width(self) -> int:
        """Entries a row."""
        return int(self._records.dtype["list"].shape[0])

    def find(self, queries: Hashes) -> Ids:
        """The rows of queries given by the hash of their text: int64 [n], -1 where there is none."""
        keys = _keys(queries)
        if not len(self._records):
            return np.full(len(keys), -1)
        sorted_keys = self._records["query"][self._order]
        at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
        return np.where(sorted_keys[at] == keys, self._order[at], -1)

    def read(self, rows: Ids) -> Entries:
        """Some rows, uint64 [n, width], filled up with NONE."""
        found: Entries = self._records["list"][rows]
        return found


def read_lists(folder: Path, made_of: Mapping[str, Any], segments: Sequence[str]) -> Lists | None:
    """The lists in `folder`, or None where there are none, they are damaged, or can't be relied on.

    `made_of` must be what they were written with, and of the vectors' segments none may have gone since: what was
    encoded again need not be the same to the bit on every device.
    """
    try:
        said = json.loads((folder / "lists.json").read_text(encoding="utf-8"))
        paths = [folder / f"{said[name]}.npy" for name in ("documents", "lists")]
        if said["made_of"] != made_of or not set(said["segments"]) <= set(segments):
            return None
        if any(file_digest(path) != path.stem for path in paths):
            return None
        return Lists(np.load(paths[0]), np.load(paths[1], mmap_mode="r"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Draft:
    """Lists on their way to disk: rows in any order, then `commit`, which puts them in the place of those before."""

    def __init__(self, folder: Path, queries: Hashes, width: int) -> None:
        self._folder, self._queries, self._width = folder, _keys(queries), width
        self._dtype = np.dtype([("query", "S16"), ("list", "<u8", (width,))])
        folder.mkdir(parents=True, exist_ok=True)
        # Written, not memory-mapped: a full disk then is an error and not the end of the process.
        self._file = (folder / "lists.tmp").open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (len(queries),)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()

    def put(self, rows: Ids, lists: Entries) -> None:
        """Write the lists [n, up to width] of some rows, which rise."""
        records = np.empty(len(rows), self._dtype)
        records["query"] = self._queries[rows]
        records["list"] = NONE
        records["list"][:, : lists.shape[1]] = lists
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
            if len(run):
                self._file.seek(self._start + int(rows[run[0]]) * self._dtype.itemsize)
                self._file.write(records[run[0] : run[-1] + 1].data)

    def commit(self, documents: npt.NDArray[np.bytes_], made_of: Mapping[str, Any], segments: Sequence[str]) -> Lists:
        """Make this the folder's lists. Before, every row must have been put."""
        self._file.close()
        with (self._folder / "documents.tmp").open("wb") as file:
            np.save(file, documents)
        said: dict[str, Any] = {"made_of": made_of, "segments": list(segments)}
        for name in ("documents", "lists"):
            partial = self._folder / f"{name}.tmp"
            said[name] = file_digest(partial)
            partial.replace(self._folder / f"{said[name]}.npy")
        content = json.dumps(said, indent=1).encode()
        replace_synced(self._folder / "lists.json", content, self._folder / "lists.json.tmp")
        for path in self._folder.glob("*.npy"):
            if path.stem not in (said["documents"], said["lists"]):
                path.unlink()
        return Lists(documents, np.load(self._folder / f"{said['lists']}.npy", mmap_mode="r"))


def _keys(hashes: Hashes) -> npt.NDArray[np.bytes_]:
    return np.ascontiguousarray(hashes).view("S16").reshape(-1)

import json
from pathlib import Path

import numpy as np
import pytest

from stages.core.hashing import hash_texts
from stages.retrieval.exact.packed_hits import NO_HIT, pack_hits
from stages.retrieval.topk_cache import TopKWriter, read_topk_cache

MADE_OF = {"search": 1}
DOCUMENTS = np.array([b"a" * 16, b"b" * 16], "S16")


def row(*pairs: tuple[int, float]) -> np.ndarray:
    places, scores = zip(*pairs, strict=True)
    return pack_hits(np.array(places), np.array(scores, np.float32))


def written(folder: Path) -> np.ndarray:
    """Three lists, put in two parts and out of order."""
    draft = TopKWriter(folder, hash_texts(["one", "two", "three"]), 2)
    lists = np.stack([row((1, 3), (0, 2)), row((0, 1), (1, 1)), row((1, 0), (0, -1))])
    draft.write_rows(np.array([0, 2]), lists[[0, 2]])
    draft.write_rows(np.array([1]), lists[[1], :1])
    lists[1, 1] = NO_HIT
    draft.commit(DOCUMENTS, MADE_OF, ["s1", "s2"])
    return lists


def test_written_lists_are_read_back(tmp_path: Path) -> None:
    lists = written(tmp_path)
    read = read_topk_cache(tmp_path, MADE_OF, ["s1", "s2", "s3"])
    assert read is not None
    assert read.document_keys.tolist() == DOCUMENTS.tolist()
    assert read.find_rows(hash_texts(["three", "none", "one", "two"])).tolist() == [2, -1, 0, 1]
    assert read.read_rows(np.array([2, 0, 1])).tolist() == lists[[2, 0, 1]].tolist()


def test_new_lists_take_the_place_of_the_old(tmp_path: Path) -> None:
    written(tmp_path)
    TopKWriter(tmp_path, hash_texts([]), 1).commit(DOCUMENTS[:1], MADE_OF, [])
    read = read_topk_cache(tmp_path, MADE_OF, [])
    assert read is not None
    assert read.find_rows(hash_texts(["one"])).tolist() == [-1]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_draft_that_was_broken_off_changes_nothing(tmp_path: Path) -> None:
    lists = written(tmp_path)
    TopKWriter(tmp_path, hash_texts(["one"]), 2).write_rows(np.array([0]), lists[[1]])
    read = read_topk_cache(tmp_path, MADE_OF, ["s1", "s2"])
    assert read is not None
    assert read.read_rows(np.array([0])).tolist() == lists[[0]].tolist()


def test_lists_that_can_not_be_relied_on_are_none(tmp_path: Path) -> None:
    assert read_topk_cache(tmp_path, MADE_OF, []) is None
    written(tmp_path)
    assert read_topk_cache(tmp_path, {"search": 2}, ["s1", "s2"]) is None
    assert read_topk_cache(tmp_path, MADE_OF, ["s1"]) is None, "vectors were encoded again"


@pytest.mark.parametrize("name", ["hits", "document_keys"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_lists_are_none(tmp_path: Path, name: str, damage: str) -> None:
    written(tmp_path)
    path = tmp_path / f"{json.loads((tmp_path / 'topk_cache.json').read_text())[name]}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-1])
    assert read_topk_cache(tmp_path, MADE_OF, ["s1", "s2"]) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"lists": 1, "documents": 2}'])
def test_a_damaged_lists_json_is_none(tmp_path: Path, content: str) -> None:
    written(tmp_path)
    (tmp_path / "topk_cache.json").write_text(content)
    assert read_topk_cache(tmp_path, MADE_OF, ["s1", "s2"]) is None

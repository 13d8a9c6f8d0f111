from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from stages.core.hashing import hash_texts, unique_hashes
from stages.embedding import vector_store
from stages.embedding.vector_store import BufferedVectorWriter, VectorStore


def hashes_of(*texts: str) -> np.ndarray:
    return hash_texts(texts)


def rows(*values: float) -> np.ndarray:
    return np.array([[value, -value] for value in values], np.float32)


def test_a_hash_is_the_xxh3_of_salt_and_text() -> None:
    got = hash_texts(["straße"], prefix="query: ")
    assert got.dtype == np.uint8
    assert got.tobytes() == xxhash.xxh3_128_digest("query: straße".encode())
    assert hash_texts([]).shape == (0, 16)


def test_vectors_are_read_in_the_requested_order_across_segments(tmp_path: Path) -> None:
    store = VectorStore(tmp_path / "store")
    assert (len(store), store.dimension) == (0, 0)
    assert store.append(hashes_of("a", "b"), rows(1, 2)) == 2
    assert store.append(hashes_of("c"), rows(3)) == 1
    asked = hashes_of("c", "a", "b", "a")
    for opened in (store, VectorStore(tmp_path / "store")):
        assert (len(opened), opened.dimension, opened.damaged_segments) == (3, 2, [])
        assert opened.read(asked).tolist() == rows(3, 1, 2, 1).tolist()


def test_a_missing_vector_is_an_error(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    store.append(hashes_of("a"), rows(1))
    assert store.contains(hashes_of("b", "a")).tolist() == [False, True]
    with pytest.raises(KeyError, match="1 of 2 texts have no vector"):
        store.read(hashes_of("b", "a"))


def test_the_first_vector_of_a_hash_stays(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    assert store.append(hashes_of("a", "b", "a"), rows(1, 2, 9)) == 2
    assert store.append(hashes_of("b", "c"), rows(9, 3)) == 1
    assert store.append(hashes_of("a"), rows(9)) == 0
    assert store.read(hashes_of("a", "b", "c")).tolist() == rows(1, 2, 3).tolist()
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_the_first_of_two_segments_with_a_hash_is_used(tmp_path: Path) -> None:
    for name, value in (("one", 1), ("two", 2)):
        VectorStore(tmp_path / name).append(hashes_of("a"), rows(value))
    segments = sorted([*tmp_path.glob("one/*.npy"), *tmp_path.glob("two/*.npy")], key=lambda path: path.name)
    expected = 1.0 if segments[0].parent.name == "one" else 2.0
    for order in (segments, segments[::-1]):
        folder = tmp_path / f"both-{order[0].parent.name}"
        folder.mkdir()
        for path in order:
            (folder / path.name).write_bytes(path.read_bytes())
        assert VectorStore(folder).read(hashes_of("a"))[0, 0] == expected


def test_a_segment_is_named_by_its_bytes_and_nothing_else_is_left(tmp_path: Path) -> None:
    VectorStore(tmp_path).append(hashes_of("a"), rows(1))
    (path,) = tmp_path.iterdir()
    assert path.name == f"{xxhash.xxh3_128_hexdigest(path.read_bytes())}.npy"


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_segment_is_ignored_and_its_texts_are_missing(tmp_path: Path, damage: str) -> None:
    store = VectorStore(tmp_path)
    store.append(hashes_of("a"), rows(1))
    path = next(tmp_path.glob("*.npy"))
    store.append(hashes_of("b"), rows(2))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"flip": content, "cut": content[:-5], "empty": b""}[damage])

    found = VectorStore(tmp_path)
    assert found.damaged_segments == [path.name]
    assert path.with_suffix(".broken").exists()
    assert found.contains(hashes_of("a", "b")).tolist() == [False, True]
    found.append(hashes_of("a"), rows(1))
    again = VectorStore(tmp_path)
    assert again.damaged_segments == []
    assert again.read(hashes_of("a", "b")).tolist() == rows(1, 2).tolist()


def test_files_of_a_killed_writer_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "segment.tmp").write_bytes(b"half a segm")
    store = VectorStore(tmp_path)
    assert (len(store), store.damaged_segments) == (0, [])
    store.append(hashes_of("a"), rows(1))
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_wrong_shapes_are_an_error(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    store.append(hashes_of("a"), rows(1))
    with pytest.raises(ValueError, match="dimension 3 in a store of dimension 2"):
        store.append(hashes_of("b"), np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="2 hashes"):
        store.append(hashes_of("b", "c"), rows(1))


def test_a_buffer_appends_by_count_and_at_its_end_even_after_an_error(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    with pytest.raises(RuntimeError), BufferedVectorWriter(store, max_texts=2) as buffer:
        buffer.add(hashes_of("a"), rows(1))
        assert len(store) == 0
        buffer.add(hashes_of("b"), rows(2))
        assert len(store) == 2
        buffer.add(hashes_of("c"), rows(3))
        raise RuntimeError
    assert VectorStore(tmp_path).read(hashes_of("a", "b", "c")).tolist() == rows(1, 2, 3).tolist()


def test_a_buffer_appends_by_time(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    with BufferedVectorWriter(store, max_seconds=0) as buffer:
        buffer.add(hashes_of("a"), rows(1))
        assert len(store) == 1


# Digests are drawn from few byte values, zeros among them: numpy's strings end at trailing zeros.
digests = st.lists(st.lists(st.sampled_from([0, 1, 255]), min_size=16, max_size=16), max_size=6)


@given(appends=st.lists(digests, max_size=4), asked=digests)
def test_a_store_is_a_dictionary_that_keeps_the_first(
    tmp_path_factory: pytest.TempPathFactory, appends: list[list[list[int]]], asked: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store, truth, value = VectorStore(folder), dict[bytes, float](), 0.0
    for keys in appends:
        values = [value + i for i in range(len(keys))]
        value += len(keys)
        for key, one in zip(keys, values, strict=True):
            truth.setdefault(bytes(key), one)
        store.append(np.array(keys, np.uint8).reshape(-1, 16), np.array(values, np.float32).reshape(-1, 1))
    wanted = np.array(asked, np.uint8).reshape(-1, 16)
    known = [key for key in asked if bytes(key) in truth]
    for opened in (store, VectorStore(folder)):
        assert len(opened) == len(truth)
        assert opened.contains(wanted).tolist() == [bytes(key) in truth for key in asked]
        if known:
            read = opened.read(np.array(known, np.uint8))
            assert read[:, 0].tolist() == [truth[bytes(key)] for key in known]
    assert [bytes(row) for row in unique_hashes(wanted)[0]] == sorted({bytes(k) for k in asked})


def mapped() -> int:
    """Bytes of files that lie in this process's memory."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says of a process")
@pytest.mark.parametrize(("most", "kept"), [(512 << 20, True), (1 << 20, False)])
def test_a_store_too_large_to_stay_in_memory_is_let_go_as_it_is_read(
    most: int, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_store, "_MAX_MAPPED_BYTES", most)
    hashes = hash_texts(map(str, range(20_000)))
    made = np.arange(20_000 * 256, dtype=np.float32).reshape(20_000, 256)
    for start in range(0, 20_000, 5_000):
        VectorStore(tmp_path).append(hashes[start : start + 5_000], made[start : start + 5_000])
    before = mapped()
    store = VectorStore(tmp_path)
    assert np.array_equal(store.read(hashes[::-1]), made[::-1])
    grown = mapped() - before
    assert grown > made.nbytes // 2 if kept else grown < made.nbytes // 2

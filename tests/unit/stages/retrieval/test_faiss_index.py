import os
import subprocess
import sys

import faiss
import numpy as np
import pytest

from stages.core.errors import InputError
from stages.retrieval.faiss_index import (
    FaissIndex,
    check_factory,
    check_parameters,
    count_ivf_lists,
    extract_faiss_message,
)
from tests.conftest import ROOT


def floats(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, np.float32)


def filled(factory: str, vectors: np.ndarray, parameters: str = "") -> FaissIndex:
    index = FaissIndex(factory, vectors.shape[1], len(vectors), parameters)
    if index.n_training_points:
        index.train(vectors)
    index.add(vectors)
    return index


def random_vectors(count: int, dimension: int = 8) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, dimension), np.float32)


@pytest.mark.parametrize(
    "factory", ["IVF4096,PQ64", "HNSW32", "IVF256,Flat", "OPQ64,IVF1024,PQ64x4fs,RFlat", "PQ7", "IVF65536_HNSW32,SQ8"]
)
def test_strings_that_faiss_reads(factory: str) -> None:
    check_factory(factory)


@pytest.mark.parametrize("factory", ["bogus", "IVF,Flat", "IVF64", "IVF16 ,Flat", "Flat,Flat"])
def test_strings_that_faiss_cannot_read(factory: str) -> None:
    with pytest.raises(ValueError, match=r"no string of faiss\.index_factory"):
        check_factory(factory)


@pytest.mark.parametrize("factory", ["IVF0,Flat", "HNSW0", "OPQ0,IVF4,Flat", "IVF4,RQ0x8"])
def test_index_strings_that_faiss_accepts_but_can_not_use(factory: str) -> None:
    with pytest.raises(ValueError, match="0 is no count"):
        check_factory(factory)


def test_ten_is_not_zero() -> None:
    check_factory("IVF10,Flat")


def test_parameters_are_pairs() -> None:
    for good in ("", "nprobe=32", "nprobe=32,k_factor_rf=4.5"):
        check_parameters(good)
    for bad in ("nprobe", "nprobe=", "nprobe=many", "nprobe=1;efSearch=2", "nprobe=1,"):
        with pytest.raises(ValueError, match="NAME=NUMBER"):
            check_parameters(bad)
    with pytest.raises(ValueError, match="stdout"):
        check_parameters("nprobe=4,verbose=1")


def test_lists_of_a_string() -> None:
    strings = ["IVF4096,PQ64", "OPQ64,IVF1024,PQ64x4fs,RFlat", "IVF65536_HNSW32,SQ8", "HNSW32", "PQ64"]
    assert [count_ivf_lists(one) for one in strings] == [4096, 1024, 65536, 0, 0]


def test_the_message_of_a_faiss_error_is_extracted() -> None:
    place = "Error in void faiss::F::g(int, std::string) at /project/faiss/F.cpp:64: "
    assert (
        extract_faiss_message(RuntimeError(f"{place}Error: '!(d % M == 0)' failed: M must divide d"))
        == "M must divide d"
    )
    assert extract_faiss_message(RuntimeError(f"{place}Error: 'metric == METRIC_L2' failed")) == "metric == METRIC_L2"
    assert extract_faiss_message(RuntimeError(f"{place}could not set parameter")) == "could not set parameter"
    assert extract_faiss_message(RuntimeError("C++ exception stoi")) == "C++ exception stoi"


def test_refusals_name_the_string_and_the_reason() -> None:
    with pytest.raises(
        InputError, match=r"faiss_index = 'PQ7' for 500 vectors of dimension 8 .*should be a multiple of"
    ):
        FaissIndex("PQ7", 8, 500)
    with pytest.raises(
        InputError, match=r"faiss_index = 'IVF501,Flat' has 501 lists, and .* only 500 .* at most 12 lists"
    ):
        FaissIndex("IVF501,Flat", 8, 500)
    with pytest.raises(
        InputError, match=r"faiss_index = 'HNSW8' .* does not take faiss_params = 'nprobe=4'.* efSearch for HNSW"
    ):
        FaissIndex("HNSW8", 8, 500, "nprobe=4")
    with pytest.raises(InputError, match=r"faiss_index = 'PQ4' for 100 vectors of dimension 8 .*training points"):
        filled("PQ4", random_vectors(100))  # its codes have 256 values


@pytest.mark.parametrize(
    ("factory", "settings"),
    [
        ("IVF1,Flat", ["nprobe=1"]),
        ("IVF4,Flat", ["nprobe=1", "nprobe=2", "nprobe=4"]),
        ("IVF5,Flat", ["nprobe=1", "nprobe=2", "nprobe=4", "nprobe=5"]),
        ("HNSW8", [f"efSearch={n}" for n in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)]),
        ("SQ8", []),
    ],
)
def test_search_parameters_of_an_index(factory: str, settings: list[str]) -> None:
    assert FaissIndex(factory, 8, 500).list_tuning_options() == settings


def test_how_many_train() -> None:
    assert FaissIndex("IVF2048,Flat", 8, 1_000_000).n_training_points == 64 * 2048
    assert FaissIndex("IVF4,Flat", 8, 1_000_000).n_training_points == 65_536
    assert FaissIndex("IVF4,Flat", 8, 1_000).n_training_points == 1_000
    assert FaissIndex("HNSW8", 8, 1_000).n_training_points == 0


@pytest.mark.parametrize(
    "factory", ["PQ4", "IVF9,PQ4", "HNSW8,PQ4", "OPQ4,PQ4", "OPQ4,IVF9_HNSW8,PQ4", "IVF9(IVF3,Flat),Flat", "PQ4,RFlat"]
)
def test_faiss_prints_nothing_with_few_training_vectors(factory: str, capfd: pytest.CaptureFixture[str]) -> None:
    filled(factory, random_vectors(300))
    assert capfd.readouterr() == ("", "")


def test_quiet_opq_equals_that_of_faiss() -> None:
    vectors = random_vectors(400)
    plain = faiss.index_factory(8, "OPQ4,PQ4np", faiss.METRIC_INNER_PRODUCT)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    plain.train(vectors)
    faiss.omp_set_num_threads(threads)
    plain.add(vectors)
    found = filled("OPQ4,PQ4", vectors).search(vectors, 9)
    assert found.tolist() == plain.search(vectors, 9)[1].tolist()


def test_fewer_results_than_k() -> None:
    """Two lists of two documents, of which one is searched."""
    index = filled("IVF2,Flat", floats([[1, 0], [-1, 0], [0.9, 0.1], [-0.9, 0.1]]), "nprobe=1")
    assert index.search(floats([[1, 0], [-2, 0]]), 4).tolist() == [[0, 2, -1, -1], [1, 3, -1, -1]]
    index.set_parameters("nprobe=2")
    assert index.search(floats([[1, 0]]), 4).tolist() == [[0, 2, 3, 1]]
    assert index.search(np.empty((0, 2), np.float32), 4).shape == (0, 4)


def test_queries_are_answered_in_their_own_places() -> None:
    """More queries than are asked at once; each is the document of its own number."""
    vectors = random_vectors(700, 16)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert filled("Flat", vectors).search(vectors, 1)[:, 0].tolist() == list(range(700))


def test_the_size_is_that_of_the_file() -> None:
    vectors = random_vectors(300)
    index = faiss.index_factory(8, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    assert filled("IVF4,Flat", vectors).n_bytes == len(faiss.serialize_index(index))


SCRIPT = """
import hashlib, sys
import faiss, numpy as np
from tests.unit.stages.retrieval.test_faiss_index import filled, random_vectors
assert faiss.omp_get_max_threads() == int(sys.argv[1])
for factory in ("HNSW8", "IVF16,PQ4", "IVF16_HNSW4,SQ8", "IVF16,PQ4x4fs,RFlat"):
    index = filled(factory, random_vectors(3_000), "efSearch=40" if factory == "HNSW8" else "nprobe=3")
    made = faiss.serialize_index(index._index).tobytes()
    print(factory, hashlib.sha256(made + index.search(random_vectors(900), 20).tobytes()).hexdigest())
assert faiss.omp_get_max_threads() == int(sys.argv[1])
"""


def test_the_number_of_threads_changes_no_bit() -> None:
    outputs = set()
    for threads in (1, 2, 5):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", SCRIPT, str(threads)]
        outputs.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == 8

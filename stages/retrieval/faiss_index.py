"""A FAISS index of a corpus by inner product, with the same content and results for any number of threads."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from stages.core.arrays import Floats, Ints
from stages.core.errors import InputError

MIN_POINTS_PER_LIST = 39
"""Training vectors per list below which FAISS warns (ClusteringParameters.min_points_per_centroid)."""
_POINTS_PER_LIST = 64
"""Training vectors per list: more than FAISS recommends, and a quarter of its maximum, for a quarter of the time."""
_MIN_TRAINING_POINTS = 65_536
"""The least number of training vectors, if there are so many: FAISS's maximum for codes of 256 values."""
_FAISS_BATCH_QUERIES = 256
"""Queries of one thread's search. Fixed, because the last bits of scores by BLAS depend on the batches."""
_FACTORY_HINT = "It is a string of faiss.index_factory, as IVF4096,PQ64 or HNSW32; left out, the search is exact"
_PARAMETERS_HINT = (
    "Those are nprobe for IVF, efSearch for HNSW, k_factor_rf for RFlat, each at least 1, and what else FAISS documents"
)
_PARAMETERS_PATTERN = re.compile(r"\w+=[0-9.e+-]+(,\w+=[0-9.e+-]+)*")


class FaissIndex:
    """An index of vectors with `dimension` components, by a string of `faiss.index_factory`; empty at first.

    Training and adding use one thread: with several, the results of LAPACK in OPQ and PCA, and of HNSW before FAISS
    1.15, depend on their number (FAISS wiki, Threads and asynchronous calls). A search uses all threads, each with
    other queries. Every error of FAISS becomes an `InputError` with the string and the reason.
    """

    def __init__(self, factory: str, dimension: int, n_documents: int, parameters: str = "") -> None:
        self.factory, self.n_lists = factory, count_ivf_lists(factory)
        if self.n_lists > n_documents:
            raise InputError(
                f"[search] faiss_index = {factory!r} has {self.n_lists:,} lists, and there are only {n_documents:,} "
                f"documents to train them on. Take at most {max(1, n_documents // MIN_POINTS_PER_LIST):,} lists, or "
                "leave faiss_index out: exact search of so few is fast."
            )
        self._description = f"[search] faiss_index = {factory!r} for {n_documents:,} vectors of dimension {dimension}"
        # Polysemous codes take ten times as long to train; their filter is off unless its threshold (ht) is set.
        uses_filter = "ht=" in parameters
        faiss_factory = factory if uses_filter else re.sub(r"((?:^|,)PQ\d+(?:x\d+)?)(?=,|$)", r"\1np", factory)
        with self._translate_faiss_errors():
            faiss = _import_faiss()
            self._index = faiss.index_factory(dimension, faiss_factory, faiss.METRIC_INNER_PRODUCT)
            self._clustered_layers = list(_find_clustered_layers(faiss, self._index))
            for part in self._clustered_layers:
                part.cp.min_points_per_centroid = 1  # FaissSearch logs it instead
        self.set_parameters(parameters)
        self.n_training_points = (
            min(n_documents, max(_POINTS_PER_LIST * self.n_lists, _MIN_TRAINING_POINTS))
            if not self._index.is_trained
            else 0
        )
        """The number of training vectors; 0 if the index needs no training."""

    def train(self, vectors: Floats) -> None:
        """Learn clusters and codes from vectors [n, d]."""
        with self._translate_faiss_errors(), _limit_to_one_thread():
            self._index.train(vectors)

    def add(self, vectors: Floats) -> None:
        """Add vectors [n, d] with the next ids. The division into batches can change the index."""
        with self._translate_faiss_errors(), _limit_to_one_thread():
            self._index.add(vectors)

    def set_parameters(self, parameters: str) -> None:
        """Set search parameters by a string of `faiss.ParameterSpace`, such as "nprobe=32,k_factor_rf=4"."""
        with self._translate_faiss_errors(f"does not take faiss_params = {parameters!r}", _PARAMETERS_HINT):
            faiss = _import_faiss()
            faiss.ParameterSpace().set_index_parameters(self._index, parameters)
        self._parameters = parameters

    def list_tuning_options(self) -> list[str]:
        """The parameter that trades time for recall, nprobe or efSearch, with ascending values; empty without one."""
        if self.n_lists:
            return [f"nprobe={2**power}" for power in range((self.n_lists - 1).bit_length())] + [
                f"nprobe={self.n_lists}"
            ]
        try:
            self.set_parameters("efSearch=16")  # FAISS's default
        except InputError:
            return []
        return [f"efSearch={2**power}" for power in range(4, 13)]

    def search(self, queries: Floats, k: int) -> Ints:
        """The ids of the best documents of each query, int64 [q, k]; padded with -1 if fewer are found."""
        ids = np.empty((len(queries), k), np.int64)

        def search_batch(start: int) -> None:
            part = slice(start, start + _FAISS_BATCH_QUERIES)
            ids[part] = self._index.search(queries[part], k)[1]

        faiss = _import_faiss()
        pool_options = {"initializer": faiss.omp_set_num_threads, "initargs": (1,)}
        error_context = self._translate_faiss_errors(
            f"can't be searched with faiss_params = {self._parameters!r}", _PARAMETERS_HINT
        )
        with error_context, ThreadPoolExecutor(faiss.omp_get_max_threads(), **pool_options) as threads:
            for _ in threads.map(search_batch, range(0, len(queries), _FAISS_BATCH_QUERIES)):
                pass
        return ids

    @property
    def n_bytes(self) -> int:
        """The size of the index on disk, which is about its size in memory."""
        faiss, size = _import_faiss(), 0

        def count(written: bytes) -> None:
            nonlocal size
            size += len(written)

        faiss.write_index(self._index, faiss.PyCallbackIOWriter(count))
        return size

    @contextmanager
    def _translate_faiss_errors(self, problem: str = "can't be made", hint: str = _FACTORY_HINT) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise InputError(f"{self._description} {problem}: {extract_faiss_message(error)}. {hint}.") from error


def check_factory(factory: str) -> None:
    """Raise `ValueError` if this is no string of `faiss.index_factory` for any vectors."""
    if re.search(r"[A-Z]0+(?!\d)", factory):
        raise ValueError("0 is no count of lists, links or parts")
    if count_ivf_lists(factory) > 1 << 20:
        return  # FAISS would allocate all lists; `FaissIndex` refuses so many if the corpus is smaller
    import faiss

    try:
        faiss.index_factory(1, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        if "could not parse" in str(error):  # other errors may be caused by the dimension 1
            raise ValueError(
                "this is no string of faiss.index_factory, as IVF4096,PQ64 or HNSW32 are; left out, or exact, the "
                "search is exact"
            ) from None


def check_parameters(parameters: str) -> None:
    """Raise `ValueError` if `faiss.ParameterSpace` can't parse this."""
    if parameters and not _PARAMETERS_PATTERN.fullmatch(parameters):
        raise ValueError('these are NAME=NUMBER with commas between, as FAISS takes them: "nprobe=32,k_factor_rf=4"')
    if "verbose" in parameters:
        raise ValueError("verbose makes FAISS write among the results on stdout: leave it out")


def count_ivf_lists(factory: str) -> int:
    """The number of lists of an IVF index; 0 for other indexes."""
    found = re.search(r"(?:^|,)IVF(\d+)", factory)
    return int(found[1]) if found else 0


def extract_faiss_message(error: RuntimeError) -> str:
    """The message of a FAISS error, without function, file and line."""
    message = re.sub(r"^Error in .* at \S+:\d+: ", "", str(error))
    condition = re.fullmatch(r"Error: '(.*)' failed(?:: (.*))?", message, re.DOTALL)
    return (condition[2] or condition[1]) if condition else message


def _find_clustered_layers(faiss: Any, index: Any) -> Iterator[Any]:
    """The layers of an index that are trained by clustering, with the quantiser of OPQ. They must outlive training."""
    layer = faiss.downcast_index(index)
    yield from (part for part in (layer, getattr(layer, "pq", None)) if hasattr(part, "cp"))
    for i in range(layer.chain.size() if hasattr(layer, "chain") else 0):
        transform = faiss.downcast_VectorTransform(layer.chain.at(i))
        if isinstance(transform, faiss.OPQMatrix):
            transform.pq = learner = faiss.ProductQuantizer(transform.d_out, transform.M, 8)  # FAISS's default
            yield learner
    for name in ("base_index", "index", "storage", "quantizer"):
        if (below := getattr(layer, name, None)) is not None:
            yield from _find_clustered_layers(faiss, below)


@contextmanager
def _limit_to_one_thread() -> Iterator[None]:
    faiss = _import_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _import_faiss() -> Any:
    """The module faiss, set to use BLAS for any number of queries; by default, _FAISS_BATCH_QUERIES are too few."""
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 1
    return faiss

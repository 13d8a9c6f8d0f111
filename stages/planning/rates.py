"""How fast this machine is at each step: by the last runs in the workspace, a short measurement or a constant."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from stages.core.context import Progress
from stages.core.memory import peak_rss, reset_peak_rss
from stages.core.model_files import resolve_model
from stages.planning.step_work import PRODUCTS_PER_CANDIDATE, Settings, count_work
from stages.planning.workload import Workload, mean_length

AMOUNT_SETTINGS = {
    *("top_k", "verifier_budget", "epochs", "distill_epochs", "max_queries", "max_dev_queries", "dev_top_k"),
    *("learning_rate", "warmup_ratio", "weight_decay", "bootstrap_samples", "seed"),
}
"""Settings that change the amount of work, or not the time at all; a step's rate holds for other values of these."""
LAST_RUN, PROBE, CONSTANT = "last run", "probe", "constant"
_LOAD_SECONDS, _PROBE_TOKENS, _MAX_PROBE_SECONDS = 5.0, 4_096, 3.0
"""The time to load a model and its libraries; the tokens of a probe, which is not repeated if it took longer."""


class Rate(NamedTuple):
    """A measurement: an `amount` took `seconds` after `fixed_seconds`, and `memory_bytes` at the peak."""

    seconds: float
    amount: float
    source: str
    fixed_seconds: float = 0.0
    memory_bytes: float = 0.0


CONSTANT_RATES = {
    step: Rate(n, 1e6, CONSTANT)
    for step, n in (("features", 8.0), ("mask", 3.0), ("sample", 1.0), ("retrievers", 150.0))
}
"""For a million candidates, measured on 2 CPU cores on two tables with 143,000 and 156,000; `retrievers` for a million
documents, measured on 50,000."""


Rates = Mapping[str, Rate]


class PastRun(NamedTuple):
    """A complete run of a step; `work`: unit (such as "pairs") -> amount."""

    step: str
    seconds: float
    memory_bytes: int
    work: Mapping[str, int]
    manifests: Mapping[str, Mapping[str, Any]]
    """Those of this step and of the steps that it reads from."""


def find_rate(step: str, runs: Sequence[PastRun], workload: Workload, settings: Settings) -> Rate | None:
    """The rate of `step` by the largest of the last five of its `runs`; None if there is none."""
    amounts = [(count_past_amount(run, workload, settings), run) for run in runs[-5:]]
    amount, run = max(amounts, key=lambda pair: pair[0], default=(0.0, None))
    if run is None or not amount:
        return None
    fixed = min(_LOAD_SECONDS, run.seconds / 2) if step in ("encode", "verify", "train", "evaluate") else 0.0
    return Rate(run.seconds - fixed, amount, LAST_RUN, fixed, run.memory_bytes)


def count_past_amount(run: PastRun, workload: Workload, settings: Settings) -> float:
    """The amount of a run; 0 if it is not known. Its texts are taken to be as long as those of today."""
    if any(search["n_merged_queries"] for search in run.manifests[run.step]["summary"].get("topk_cache", {}).values()):
        return 0.0  # a continued search, which did not search all queries in full
    then = dict(settings)
    for step in run.manifests.keys() & settings.keys():
        then[step] = settings[step].model_copy(update=run.manifests[step]["parameters"])
    n_documents = run.manifests["pairs"]["summary"]["documents"]
    work = count_work(run.step, replace(workload, n_documents=n_documents), then)
    return run.work.get(work.unit, 0) * (work.unit_cost or 0.0)


def probe_rates(steps: Sequence[str], workload: Workload, settings: Settings, progress: Progress) -> Rates:
    """Measure the rates of those of `steps` that run a model or search, some seconds each."""
    reranker = partial(_load_reranker, workload, settings["train"])
    loads = {"encode": partial(_load_encoder, workload, settings["encode"]), "verify": reranker, "train": reranker}
    loads |= {"search": partial(_load_vectors, workload, settings["search"]), "evaluate": reranker}
    if workload.spec.server:
        del loads["encode"]  # what a server takes, only a run of it shows
    if needed := {loads[step] for step in steps if step in loads}:
        progress.log("measuring this machine for some seconds ...")
    measured = {load: measure(load) for load in needed}
    return {step: measured[loads[step]] for step in steps if step in loads}


def _load_encoder(workload: Workload, params: Any) -> Callable[[], float]:
    """Encodes a batch with the first encoder; further encoders are taken to be as fast."""
    from stages.embedding.encoder import Encoder

    encoder = Encoder(workload.spec, params.model)
    length = round(mean_length(workload.document_tokens, params.max_length or workload.encoder_size.max_length))
    texts = ["the " * length] * max(1, params.batch_tokens // max(length, 1))
    return lambda: sum(tokens for _, _, tokens in encoder.encode(texts, "document", params.batch_tokens))


def _load_reranker(workload: Workload, params: Any) -> Callable[[], float]:
    """Scores a batch of pairs with the model that [train] starts from."""
    from stages.reranking.cross_encoder import count_pair_tokens, load_reranker, score_pairs

    reranker = load_reranker(resolve_model(params.base), params.device, params.max_length)
    length = round(mean_length(workload.pair_tokens, params.max_length))
    pairs = [("the", "the " * length)] * max(8, _PROBE_TOKENS // max(length, 1))
    n_tokens = int(count_pair_tokens(reranker, pairs).sum())
    return lambda: n_tokens * bool(len(score_pairs(reranker, pairs, params.dtype)))


def _load_vectors(workload: Workload, params: Any) -> Callable[[], float]:
    """Searches 16,384 random vectors for 1,024."""
    from stages.retrieval.exact.search import exact_search
    from stages.retrieval.stage import choose_device_and_dtype

    dimension, k = workload.encoder_size.hidden_size, params.top_k
    device, dtype = choose_device_and_dtype(params, workload.n_queries * workload.n_documents * dimension)
    queries, documents = np.split(np.random.default_rng(0).standard_normal((17_408, dimension), np.float32), [1_024])
    search = partial(exact_search, queries, [documents], k, device=device, dtype=dtype)
    amount = len(queries) * (len(documents) * dimension + k * PRODUCTS_PER_CANDIDATE)
    return lambda: amount * bool(len(search()))


def measure(load: Callable[[], Callable[[], float]]) -> Rate:
    """Time the function that `load` returns, which returns its amount of work: one warm-up and up to three runs."""
    reset_peak_rss()
    started = time.monotonic()
    run = load()
    load_seconds, amount, seconds = time.monotonic() - started, 0.0, list[float]()
    while len(seconds) < 4 and sum(seconds) < _MAX_PROBE_SECONDS:
        started = time.monotonic()
        amount = run()
        seconds.append(time.monotonic() - started)
    return Rate(statistics.median(seconds[1:] or seconds), amount, PROBE, load_seconds, peak_rss())

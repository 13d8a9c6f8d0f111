"""How much each step has to do, in the unit in which it reports progress."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from stages.mining.verify.params import SELF_TRAINED, SELF_TRAINED_FOLDS, SELF_TRAINED_MAX_QUERIES
from stages.planning.workload import Workload, mean_length
from stages.retrieval.faiss_search import EXACT_INDEX_NAMES
from stages.retrieval.stage import DOCUMENTS_PER_BLOCK

Settings = Mapping[str, Any]
"""Step -> its Params."""
UNCERTAIN_SHARE = 0.03
"""Share of the candidates that a verifier scores; the real share depends on the table."""
BACKWARD_COST = 3
"""To train on a token costs as much as to score three (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""
ACTIVATION_BYTES = 68
"""For each token that is trained on, layer and dimension: twice the 34 bytes of half precision (Korthikanti et al.
2022, arXiv 2205.05198, section 4.1)."""
PRODUCTS_PER_CANDIDATE = 90_000
"""The time to keep a candidate, in multiplications (measured on 2 CPU cores)."""


class StepWork(NamedTuple):
    """What a step has to do. Its time is proportional to `n_units` x `unit_cost`, which is None if nobody knows it.

    `memory_bytes` is what comes on top of the process with a loaded model.
    """

    n_units: float
    unit: str
    unit_cost: float | None
    description: str
    memory_bytes: float = 0
    disk_bytes: float = 0


def count_work(step: str, workload: Workload, settings: Settings) -> StepWork:
    """The work of one step, from the counts of the tables and the settings of all steps."""
    params, dimension = settings[step], workload.encoder_size.hidden_size
    n_queries, n_documents, n_train = workload.n_queries, workload.n_documents, workload.count_split("train")
    n_negatives = settings["sample"].num_negatives
    ranks = (min(end, n_documents) - source.start for source, end in settings["search"].source_depths)
    n_kept = sum(max(0, n) for n in ranks)  # candidates of a query
    match step:
        case "encode":
            limit = params.max_length or workload.encoder_size.max_length
            lengths = mean_length(workload.query_tokens, limit), mean_length(workload.document_tokens, limit)
            n_tokens = sum(new.n_queries * lengths[0] + new.n_documents * lengths[1] for new in workload.new_texts)
            n_texts = sum(new.n_queries + new.n_documents for new in workload.new_texts)
            work = f"{n_texts:,} new texts, {n_tokens:,.0f} tokens"
            return StepWork(n_tokens, "tokens", 1, work, 200 * (n_queries + n_documents), 4 * n_texts * dimension)
        case "search":
            n_searches = 0.0
            for source, _ in params.source_depths:
                new = dict(enumerate(workload.new_texts)).get(source.encoder_index)
                if new and new.has_search and 2 * new.n_documents <= n_documents:  # the last search is continued
                    n_searches += new.n_queries + (n_queries - new.n_queries) * new.n_documents / n_documents
                elif source.name != "random":
                    n_searches += n_queries
            is_exact = params.faiss_index is None or params.faiss_index in EXACT_INDEX_NAMES
            cost = n_documents * dimension + PRODUCTS_PER_CANDIDATE * n_kept if is_exact else None
            n_batch, n_block = min(n_queries, 16_384), min(n_documents, DOCUMENTS_PER_BLOCK)  # held at once
            memory = 4 * dimension * (n_batch + 2 * n_block) + 64 * n_batch * n_kept
            work = f"{n_queries:,} queries x {n_documents:,} documents"
            return StepWork(n_searches, "searches", cost, work, memory, 18 * n_queries * n_kept)
        case "features":
            n = n_queries * n_kept
            return StepWork(n_queries, "queries", n_kept, f"{n:,} candidates", 500 * min(n, 200_000), 75 * n)
        case "verify" if params.llm_judge:
            return StepWork(
                params.llm_judge_budget, "judgements", None, f"at most {params.llm_judge_budget:,} requests"
            )
        case "verify" if not params.verifier:
            return StepWork(0, "pairs", 1, "no verifier is set")
        case "verify":
            n_uncertain = round(UNCERTAIN_SHARE * n_queries * n_kept)
            n_pairs = min(n_uncertain, params.verifier_budget or n_uncertain) + n_train
            share = workload.verifier_size.n_weights / max(workload.base_size.n_weights, 1)
            cost = share * mean_length(workload.pair_tokens, params.verifier_max_length)
            if params.verifier == SELF_TRAINED:  # folds of groups of 8 pairs, an epoch after one of distillation
                n_trained = SELF_TRAINED_FOLDS * 8 * 2 * min(SELF_TRAINED_MAX_QUERIES, n_train)
                cost *= 1 + BACKWARD_COST * n_trained / max(n_pairs, 1)
            return StepWork(n_pairs, "pairs", cost, f"about {n_pairs:,} pairs", 0, 20 * n_pairs)
        case "mask":
            n = n_queries * n_kept
            return StepWork(n_queries, "queries", n_kept, f"{n:,} candidates", 180 * n, 65 * n)
        case "sample":
            work = f"{n_train:,} queries x {n_negatives} negatives"
            disk = 1_000 * n_train * n_negatives
            return StepWork(n_train, "queries", n_kept, work, 110 * n_train * n_kept, disk)
        case "train":
            n_trained = workload.count_split("train", params.max_queries)
            n_groups = round(n_trained * min(params.num_positives, workload.n_positives_per_query))
            n_epochs = params.epochs + params.resolve_distill_epochs(workload.has_new_head)
            n_steps, group_size = -(-n_groups // params.batch_size), 1 + min(params.num_negatives, n_negatives)
            n_dev_pairs = workload.count_split("dev", params.max_dev_queries) * params.dev_top_k
            length, base = mean_length(workload.pair_tokens, params.max_length), workload.base_size
            n_tokens = length * params.batch_size * group_size
            cost = BACKWARD_COST * n_tokens + length * n_dev_pairs / max(n_steps, 1)
            # gradients and AdamW's moments, and the activations of a step; the result, and two checkpoints with moments
            memory = 12 * base.n_weights + ACTIVATION_BYTES * base.hidden_size * base.n_layers * n_tokens
            work = f"{n_groups:,} groups x {group_size} pairs x {n_epochs} epochs"
            return StepWork(n_steps * n_epochs, "steps", cost, work, memory, 28 * base.n_weights)
        case "retrievers":
            n_evaluated = sum(workload.count_split(split, params.max_queries) for split in ("train", "dev", "test"))
            memory = 2_000 * n_documents + 400 * n_evaluated * n_kept
            return StepWork(n_documents, "documents", 1, f"BM25 over {n_documents:,} documents", memory)
        case _:  # evaluate
            n_evaluated = sum(workload.count_split(split, params.max_queries) for split in ("dev", "test"))
            n_rerankers = 1 if workload.has_new_head else 2  # a base model with a new head is not evaluated
            n_pairs = n_rerankers * n_evaluated * min(params.top_k, n_documents)
            cost = mean_length(workload.pair_tokens, settings["train"].max_length)
            return StepWork(n_pairs, "pairs", cost, f"{n_pairs:,} pairs")

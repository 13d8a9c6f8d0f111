"""The whole program as data: each step, what it reads, what it writes, and what it keeps beside its results.

Functions are named as "module:function", so that this file imports no step and `prep --help` stays fast. A test
resolves each.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.workflow.stage import Stage, Store

if TYPE_CHECKING:
    from stages.core.params import BaseParams


def _reads_vectors(params: Any) -> bool:
    """Whether sampling compares documents: to leave out near duplicates, or positives that are likely wrong."""
    return params.near_duplicate_similarity <= 1 or bool(params.drop_positives)


STAGES = (
    Stage(
        name="pairs",
        module="stages.pairs.stage",
        section="pairs",
        inputs=(),
        outputs=(
            "queries.parquet",
            "corpus.parquet",
            "qrels.parquet",
            "label_overrides.parquet",
            "answers.parquet",
            "near_duplicates.parquet",
            "rejects.parquet",
        ),
        libraries=("polars", "pyarrow"),
        key_extras="stages.pairs.stage:key_extras",
        writes=(Store.SCRATCH,),
    ),
    Stage(
        name="encode",
        module="stages.embedding.stage",
        section="encode",
        inputs=("pairs/queries.parquet", "pairs/corpus.parquet", "pairs/qrels.parquet", "pairs/answers.parquet"),
        outputs=("encoder.json", "text_hashes.npy"),
        libraries=(),
        key_extras="stages.embedding.stage:key_extras",
        server_key_extras="stages.embedding.stage:server_key_extras",
        is_valid="stages.embedding.stage:has_all_vectors",
        reads=(Store.VECTORS,),
        writes=(Store.VECTORS,),
    ),
    Stage(
        name="search",
        module="stages.retrieval.stage",
        section="search",
        inputs=(
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "pairs/qrels.parquet",
            "encode/encoder.json",
            "encode/text_hashes.npy",
        ),
        outputs=("candidates.parquet", "qrels_scored.parquet", "encoder_fit.json"),
        libraries=("faiss-cpu", "numpy", "pyarrow", "scipy"),
        key_extras="stages.retrieval.stage:key_extras",
        reads=(Store.VECTORS, Store.TOPK_CACHE),
        writes=(Store.TOPK_CACHE,),
    ),
    Stage(
        name="features",
        module="stages.mining.candidate_features",
        section="mine",
        inputs=(
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "pairs/answers.parquet",
            "pairs/near_duplicates.parquet",
            "search/candidates.parquet",
            "search/qrels_scored.parquet",
            "search/encoder_fit.json",
            "encode/encoder.json",
            "encode/text_hashes.npy",
        ),
        outputs=("features.parquet", "holdout_candidates.parquet", "estimator.json"),
        libraries=("polars", "pyarrow", "scipy", "scikit-learn"),
        key_extras="stages.mining.candidate_features:key_extras",
        reads=(Store.VECTORS,),
        writes=(Store.SCRATCH,),
    ),
    Stage(
        name="verify",
        module="stages.mining.verify.stage",
        section="verify",
        inputs=(
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "search/candidates.parquet",
            "search/qrels_scored.parquet",
            "features/features.parquet",
            "features/holdout_candidates.parquet",
            "features/estimator.json",
        ),
        outputs=("verifier_scores.parquet", "holdout_verified.parquet"),
        libraries=("polars", "pyarrow", "scikit-learn", "torch", "transformers", "sentence-transformers"),
        key_extras="stages.mining.verify.stage:key_extras",
        reads=(Store.SCORES,),
        writes=(Store.SCORES, Store.SCRATCH, Store.LOGS),
        is_resumable=True,
    ),
    Stage(
        name="mask",
        module="stages.mining.mask",
        section="mine",
        inputs=(
            "pairs/queries.parquet",
            "search/qrels_scored.parquet",
            "features/features.parquet",
            "features/estimator.json",
            "verify/verifier_scores.parquet",
            "verify/holdout_verified.parquet",
        ),
        outputs=("verdicts.parquet",),
        libraries=("polars", "pyarrow"),
    ),
    Stage(
        name="sample",
        module="stages.mining.sampling.stage",
        section="mine",
        inputs=(
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "pairs/near_duplicates.parquet",
            "search/qrels_scored.parquet",
            "mask/verdicts.parquet",
        ),
        optional_inputs={
            "pairs/label_overrides.parquet": lambda params: bool(params.drop_positives),
            "encode/encoder.json": _reads_vectors,
            "encode/text_hashes.npy": _reads_vectors,
        },
        outputs=("mined.jsonl",),
        libraries=("polars",),
        reads=(Store.VECTORS,),
    ),
    Stage(
        name="train",
        module="stages.training.stage",
        section="train",
        inputs=(
            "sample/mined.jsonl",
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "pairs/qrels.parquet",
            "pairs/near_duplicates.parquet",
            "search/candidates.parquet",
        ),
        outputs=("reranker", "training.json"),
        libraries=("torch", "transformers", "sentence-transformers", "accelerate", "tokenizers"),
        key_extras="stages.training.stage:key_extras",
        writes=(Store.SCRATCH, Store.LOGS),
        is_resumable=True,
    ),
    Stage(
        name="retrievers",
        module="stages.evaluation.retrievers",
        section="evaluate",
        inputs=(
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "pairs/qrels.parquet",
            "pairs/near_duplicates.parquet",
            "search/candidates.parquet",
            "encode/encoder.json",
            "encode/text_hashes.npy",
        ),
        outputs=("retrievers.json",),
        libraries=("scipy", "ir-measures", "polars"),
        reads=(Store.VECTORS,),
    ),
    Stage(
        name="evaluate",
        module="stages.evaluation.stage",
        section="evaluate",
        inputs=(
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "pairs/qrels.parquet",
            "pairs/near_duplicates.parquet",
            "search/candidates.parquet",
            "search/qrels_scored.parquet",
            "train/reranker",
        ),
        outputs=("metrics.json", "per_query.parquet"),
        model_inputs=(("base_model", "train", "base"),),
        libraries=("torch", "transformers", "sentence-transformers", "scipy", "ir-measures", "polars"),
    ),
    Stage(
        name="gate",
        module="stages.evaluation.regression_gate",
        section="refresh",
        inputs=(
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "pairs/qrels.parquet",
            "pairs/near_duplicates.parquet",
            "search/candidates.parquet",
            "search/qrels_scored.parquet",
            "evaluate/metrics.json",
            "evaluate/per_query.parquet",
        ),
        published_inputs={"published_reranker": "train/reranker", "published_queries": "pairs/queries.parquet"},
        outputs=("gate.json",),
        libraries=("torch", "transformers", "sentence-transformers", "ir-measures", "polars"),
    ),
)
STAGES_BY_NAME = {stage.name: stage for stage in STAGES}

PIPELINE = tuple(stage for stage in STAGES if not stage.published_inputs)
"""The steps of every run; the others compare its results with a publication."""

PUBLISHED_OUTPUTS = (
    "sample/mined.jsonl",
    "search/candidates.parquet",
    "mask/verdicts.parquet",
    "pairs/queries.parquet",
    "pairs/corpus.parquet",
    "pairs/qrels.parquet",
    "pairs/rejects.parquet",
    "evaluate/metrics.json",
    "evaluate/per_query.parquet",
    "retrievers/retrievers.json",
    "train/reranker",
)
"""What readers find in `current/`."""


def list_required_stages(name: str, params: Mapping[str, "BaseParams"]) -> list[str]:
    """The stages that `name` needs under these parameters, and itself, in the order of the pipeline."""
    required = {name}
    for stage in reversed(PIPELINE):
        if stage.name in required:
            required |= set(stage.list_upstream_stages(params[stage.name]))
    return [stage.name for stage in PIPELINE if stage.name in required]

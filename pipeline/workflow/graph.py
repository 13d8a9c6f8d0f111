"""The pipeline as data: each stage, what it reads, what it writes, and where its parameters stand in prep.toml."""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.core.params import BaseParams


@dataclass(frozen=True)
class Stage:
    """One step. `inputs` are files of upstream stages as "stage/file"; the stage is given them by their stem."""

    name: str
    module: str
    section: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    libraries: tuple[str, ...]
    model_inputs: tuple[tuple[str, str, str], ...] = ()
    """Models that are inputs too: (name of the input, stage and parameter that name the model)."""

    def load_module(self) -> ModuleType:
        """The module that holds the stage's Params, VERSION and run."""
        return importlib.import_module(self.module)

    def select_inputs(self, params: "BaseParams") -> tuple[str, ...]:
        """The inputs under these parameters: a stage's `skipped_inputs` says which of them it would leave unread."""
        skip = getattr(self.load_module(), "skipped_inputs", None)
        skipped = skip(params) if skip else frozenset()
        return tuple(path for path in self.inputs if path not in skipped)

    def list_upstream_stages(self, params: "BaseParams") -> tuple[str, ...]:
        """The names of the stages that this one then reads from, each once, in order."""
        return tuple(dict.fromkeys(path.split("/")[0] for path in self.select_inputs(params)))


PIPELINE = (
    Stage(
        name="pairs",
        module="stages.pairs.stage",
        section="pairs",
        inputs=(),
        outputs=(
            "queries.parquet",
            "corpus.parquet",
            "qrels.parquet",
            "decided.parquet",
            "answers.parquet",
            "rejects.parquet",
        ),
        libraries=("polars", "pyarrow"),
    ),
    Stage(
        name="encode",
        module="stages.embedding.stage",
        section="encode",
        inputs=("pairs/queries.parquet", "pairs/corpus.parquet"),
        outputs=("encoding.json", "texts.npy"),
        libraries=(),
    ),
    Stage(
        name="search",
        module="stages.retrieval.stage",
        section="mine",
        inputs=("pairs/queries.parquet", "pairs/corpus.parquet", "pairs/qrels.parquet", "encode/encoding.json"),
        outputs=("candidates.parquet", "judged.parquet"),
        libraries=("faiss-cpu", "numpy", "pyarrow", "scipy"),
    ),
    Stage(
        name="evidence",
        module="stages.mining.candidate_features",
        section="mine",
        inputs=(
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "pairs/answers.parquet",
            "search/candidates.parquet",
            "search/judged.parquet",
            "encode/encoding.json",
        ),
        outputs=("evidence.parquet", "shown.parquet", "estimator.json"),
        libraries=("polars", "pyarrow", "scipy", "scikit-learn"),
    ),
    Stage(
        name="verify",
        module="stages.mining.verify.stage",
        section="mine",
        inputs=(
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "search/candidates.parquet",
            "search/judged.parquet",
            "evidence/evidence.parquet",
            "evidence/shown.parquet",
            "evidence/estimator.json",
        ),
        outputs=("verified.parquet", "taught.parquet"),
        libraries=("polars", "pyarrow", "scikit-learn", "torch", "transformers", "sentence-transformers"),
    ),
    Stage(
        name="mask",
        module="stages.mining.mask",
        section="mine",
        inputs=(
            "pairs/queries.parquet",
            "search/judged.parquet",
            "evidence/evidence.parquet",
            "evidence/estimator.json",
            "verify/verified.parquet",
            "verify/taught.parquet",
        ),
        outputs=("verdicts.parquet",),
        libraries=("polars", "pyarrow"),
    ),
    Stage(
        name="compose",
        module="stages.mining.sampling.stage",
        section="mine",
        inputs=(
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "pairs/qrels.parquet",
            "pairs/decided.parquet",
            "search/judged.parquet",
            "mask/verdicts.parquet",
            "encode/encoding.json",
        ),
        outputs=("mined.jsonl",),
        libraries=("polars",),
    ),
    Stage(
        name="train",
        module="stages.training.stage",
        section="train",
        inputs=(
            "compose/mined.jsonl",
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "pairs/qrels.parquet",
            "search/candidates.parquet",
        ),
        outputs=("reranker", "training.json"),
        libraries=("torch", "transformers", "sentence-transformers", "accelerate", "tokenizers"),
    ),
    Stage(
        name="evaluate",
        module="stages.evaluation.stage",
        section="evaluate",
        inputs=(
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "pairs/qrels.parquet",
            "search/candidates.parquet",
            "search/judged.parquet",
            "train/reranker",
            "train/training.json",
        ),
        outputs=("metrics.json", "per_query.parquet"),
        model_inputs=(("base", "train", "base"),),
        libraries=("torch", "transformers", "sentence-transformers", "scipy", "ir-measures", "polars"),
    ),
)

GATE = Stage(
    name="gate",
    module="stages.evaluation.regression_gate",
    section="refresh",
    inputs=(
        "pairs/queries.parquet",
        "pairs/corpus.parquet",
        "pairs/qrels.parquet",
        "search/candidates.parquet",
        "search/judged.parquet",
        "evaluate/metrics.json",
        "evaluate/per_query.parquet",
    ),
    outputs=("gate.json",),
    libraries=("torch", "transformers", "sentence-transformers", "ir-measures", "polars"),
)
"""Run by a refresh only, where a reranker is published already; its input "old" is that one."""

STAGES_BY_NAME = {stage.name: stage for stage in PIPELINE}

PUBLISHED_OUTPUTS = (
    "compose/mined.jsonl",
    "search/candidates.parquet",
    "mask/verdicts.parquet",
    "pairs/queries.parquet",
    "pairs/corpus.parquet",
    "pairs/qrels.parquet",
    "pairs/rejects.parquet",
    "evaluate/metrics.json",
    "evaluate/per_query.parquet",
    "train/reranker",
)
"""What readers find in `current/`."""

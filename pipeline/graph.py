"""The pipeline as data: each stage, what it reads, what it writes, and where its parameters stand in prep.toml."""

import importlib
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Stage:
    """One step. `inputs` are files of upstream stages as "stage/file"; the stage is given them by their stem."""

    name: str
    module: str
    section: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    libraries: tuple[str, ...]
    models: tuple[tuple[str, str, str], ...] = ()
    """Models that are inputs too: (name of the input, stage and parameter that name the model)."""

    def load(self) -> ModuleType:
        """The module that holds the stage's Params, VERSION and run."""
        return importlib.import_module(self.module)

    @property
    def upstream(self) -> tuple[str, ...]:
        """The names of the stages that this one reads from, each once, in order."""
        return tuple(dict.fromkeys(path.split("/")[0] for path in self.inputs))


PIPELINE = (
    Stage(
        name="pairs",
        module="stages.pairs.build",
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
        module="stages.retrieval.encode",
        section="encode",
        inputs=("pairs/queries.parquet", "pairs/corpus.parquet"),
        outputs=("encoding.json", "texts.npy"),
        libraries=(),
    ),
    Stage(
        name="search",
        module="stages.retrieval.search",
        section="mine",
        inputs=("pairs/queries.parquet", "pairs/corpus.parquet", "pairs/qrels.parquet", "encode/encoding.json"),
        outputs=("candidates.parquet", "judged.parquet"),
        libraries=("faiss-cpu", "numpy", "pyarrow"),
    ),
    Stage(
        name="mask",
        module="stages.negatives.mask",
        section="mine",
        inputs=(
            "pairs/queries.parquet",
            "pairs/corpus.parquet",
            "pairs/qrels.parquet",
            "pairs/answers.parquet",
            "search/candidates.parquet",
            "search/judged.parquet",
            "encode/encoding.json",
        ),
        outputs=("verdicts.parquet",),
        libraries=("polars", "pyarrow", "bm25s", "scikit-learn"),
    ),
    Stage(
        name="compose",
        module="stages.negatives.compose",
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
        module="stages.training.train",
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
        module="stages.evaluation.evaluate",
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
        models=(("base", "train", "base"),),
        libraries=("torch", "transformers", "sentence-transformers", "bm25s", "ir-measures", "polars"),
    ),
)

GATE = Stage(
    name="gate",
    module="stages.evaluation.gate",
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

STAGES = {stage.name: stage for stage in PIPELINE}

PUBLISHED = (
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

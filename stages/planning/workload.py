"""How much work a table is: its counts, and the tokens of a sample of its texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.core.arrays import Ints
from stages.core.model_files import ModelSize, count_tokens, read_model_size, resolve_model
from stages.core.schemas import QUERIES, scan_documents, scan_table
from stages.embedding.encoder import EncoderSpec
from stages.embedding.stage import find_missing_texts
from stages.mining.verify.params import SELF_TRAINED
from stages.retrieval.topk_cache import TOPK_CACHE_FOLDER

SAMPLE_SIZE = 1_000
UNLIMITED_TOKENS = 10**9
"""The limit of an encoder behind a URL, which nobody here knows."""


class NewTexts(NamedTuple):
    """Texts that an encoder has no vector of, each once; and whether its last search can be continued."""

    n_queries: int
    n_documents: int
    has_search: bool


@dataclass(frozen=True)
class Workload:
    """The counts that time, memory and disk follow from.

    `new_texts` has one entry for each encoder; `spec` and `encoder_size` are those of the first one. `base_size` is of
    the model that [train] starts from. The tokens [n] are those of a sample, as these models read it, not cut.
    """

    n_queries: int
    n_documents: int
    n_queries_by_split: Mapping[str, int]
    n_positives_per_query: float
    new_texts: Sequence[NewTexts]
    spec: EncoderSpec
    encoder_size: ModelSize
    base_size: ModelSize
    has_new_head: bool
    verifier_size: ModelSize
    query_tokens: Ints
    document_tokens: Ints
    pair_tokens: Ints

    def count_split(self, split: str, max_queries: int = 0) -> int:
        """Queries of a split, at most `max_queries` (0: all)."""
        n_queries = self.n_queries_by_split.get(split, 0)
        return min(max_queries or n_queries, n_queries)


def mean_length(tokens: Ints, max_length: int) -> float:
    """Mean of the tokens of texts that are cut at `max_length`; 0 if there is no text."""
    return float(np.minimum(tokens, max_length).mean()) if len(tokens) else 0.0


def count_workload(
    params: Mapping[str, Any], counts: Mapping[str, Any], inputs: Mapping[str, Path], vectors_dir: Path
) -> Workload:
    """Count the work for the tables in `inputs` (queries, corpus); loads no model.

    `params`: step -> its Params; `counts`: summary of the step pairs. Raises `InputError` if a model can't be read.
    """
    from stages.reranking.cross_encoder import has_head

    base = resolve_model(params["train"].base)
    verifier = params["verify"].verifier or SELF_TRAINED
    n_queries, n_documents = counts["queries"], counts["documents"]
    missing = find_missing_texts(params["encode"], inputs, vectors_dir)
    spec = missing[0][0]
    # a server's tokenizer and size are not known; the other model's tokens are as good as any
    encoder = base if spec.server else resolve_model(params["encode"].model)
    encoder_size = read_model_size(encoder)
    if spec.server:
        encoder_size = ModelSize(0, 0, spec.server.dimension or encoder_size.hidden_size, UNLIMITED_TOKENS)
    queries = scan_table(inputs["queries"], QUERIES).gather_every(1 + n_queries // SAMPLE_SIZE).collect()["query"]
    documents = scan_documents(inputs["corpus"]).gather_every(1 + n_documents // SAMPLE_SIZE).collect()["text"]
    return Workload(
        n_queries=n_queries,
        n_documents=n_documents,
        n_queries_by_split=counts["splits"],
        n_positives_per_query=counts["positives_per_query"]["mean"],
        new_texts=[
            NewTexts(
                int(new["query"].sum()),
                int(new["document"].sum()),
                (vectors_dir / one.key / TOPK_CACHE_FOLDER).exists(),
            )
            for one, new in missing
        ],
        spec=spec,
        encoder_size=encoder_size,
        base_size=read_model_size(base),
        has_new_head=not has_head(base),
        verifier_size=read_model_size(base if verifier == SELF_TRAINED else resolve_model(verifier)),
        query_tokens=count_tokens(encoder, [spec.prompt_for("query") + text for text in queries]),
        document_tokens=count_tokens(encoder, [spec.prompt_for("document") + text for text in documents]),
        pair_tokens=count_tokens(base, queries.to_list(), [documents[i % len(documents)] for i in range(len(queries))]),
    )

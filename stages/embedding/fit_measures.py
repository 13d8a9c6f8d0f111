"""Measures on a sample of a table whether an encoder fits it, before anything is encoded."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from stages.core.hashing import Hashes, hash_keys, sample_by_hash, unique_hashes
from stages.core.model_files import resolve_model
from stages.core.schemas import ANSWERS, QRELS, read_document_texts, read_table
from stages.embedding.encoder import EncoderSpec
from stages.embedding.encoder_fit import (
    EncoderFit,
    assess_encoder_fit,
    measure_answers_beyond,
    measure_texts,
)
from stages.embedding.lookup import ROLE_TABLES, read_text_windows
from stages.embedding.tokenizer import EncoderTokenizer, load_tokenizer

_SAMPLE_TEXTS = 1_000
"""Queries, documents and known answers, each sampled by hash, that say whether the encoder fits."""
_MAX_CHARS_PER_TOKEN = 12
"""Of a sampled text, for each token that the encoder reads: what comes later is hardly ever read."""
_MAX_CHARS = 8_192
"""Of a sampled text, if the encoder has no limit."""
_SAMPLE_CHARS = 4_000_000
"""Characters of all sampled texts of a role."""


def measure_encoder_fit(
    spec: EncoderSpec, model: str, hashes: Mapping[str, Hashes], inputs: Mapping[str, Path]
) -> EncoderFit:
    """What the encoder's tokenizer makes of a sample of the texts; of an encoder behind a URL only scripts and lengths.

    Answers are looked for in their documents if `inputs` has the tables.
    """
    found = None if spec.server else load_tokenizer(resolve_model(model), spec)
    measures = {}
    for role, table in ROLE_TABLES.items():
        max_tokens = found.count_text_tokens(spec.prompt_for(role)) if found else None
        texts = _sample_texts(inputs[table], role, hashes[role], max_tokens)
        measures[role] = measure_texts(texts, found.tokenizer if found else None, max_tokens)
    n_answers, answers_beyond = _measure_answers(found, spec, inputs) if found else (0, None)
    verdict, reasons = assess_encoder_fit(measures["query"], measures["document"], answers_beyond_share=answers_beyond)
    return EncoderFit(
        verdict,
        reasons,
        measures["query"],
        measures["document"],
        found.max_length if found else None,
        len(unique_hashes(hashes["document"])[0]),
        n_answers,
        answers_beyond,
    )


def _sample_texts(path: Path, role: str, hashes: Hashes, max_tokens: int | None) -> list[str]:
    """Distinct texts of a table, those with the smallest hashes, cut after what no encoder of `max_tokens` reads."""
    texts, first = unique_hashes(hashes)
    mask = np.zeros(len(hashes), np.bool_)
    mask[first[:_SAMPLE_TEXTS]] = True
    max_chars = _MAX_CHARS_PER_TOKEN * max_tokens if max_tokens else _MAX_CHARS
    by_hash = {
        key: text[:max_chars]
        for window, window_hashes in read_text_windows(path, role, mask, hashes)
        for key, text in zip(hash_keys(window_hashes).tolist(), window, strict=True)
    }
    sampled: list[str] = []
    n_chars = 0
    for key in hash_keys(texts[:_SAMPLE_TEXTS]).tolist():
        sampled.append(by_hash[key])
        n_chars += len(by_hash[key])
        if n_chars >= _SAMPLE_CHARS:
            break
    return sampled


def _measure_answers(
    found: EncoderTokenizer, spec: EncoderSpec, inputs: Mapping[str, Path]
) -> tuple[int, float | None]:
    """How many known answers stand in a positive of their query, and the share of them that is not read there."""
    max_tokens = found.count_text_tokens(spec.document_prompt)
    if max_tokens is None or not found.tokenizer.is_fast or not {"answers", "qrels"} <= inputs.keys():
        return 0, None
    answers = read_table(inputs["answers"], ANSWERS)
    sampled = sample_by_hash(answers["query_id"], _SAMPLE_TEXTS, "encoder_fit")
    qrels = read_table(inputs["qrels"], QRELS).filter(pl.col("relevance") > 0, pl.col("query_id").is_in(sampled))
    pairs = answers.join(qrels, on="query_id").unique(["query_id"], keep="first", maintain_order=True)
    texts = read_document_texts(inputs["corpus"], set(pairs["doc_id"]))
    max_chars = _MAX_CHARS_PER_TOKEN * max_tokens
    # an answer behind `max_chars` is not read either, so its document is cut behind the answer
    documents = [
        (answer, texts[doc_id][: max(max_chars, texts[doc_id].find(answer) + len(answer))])
        for answer, doc_id in pairs.select("answer", "doc_id").rows()
    ]
    return measure_answers_beyond(documents, found.tokenizer, max_tokens)

"""What a table has for the stages to do: its counts, and a sample of how long its texts are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from stages.core.arrays import Bools
from stages.core.hashing import sample_by_hash
from stages.core.model_files import resolve_model
from stages.core.schemas import ANSWERS, CORPUS, QRELS, QUERIES, read_table, scan_documents, scan_table
from stages.embedding.encoder import EncoderSpec
from stages.embedding.stage import Params as EncodeParams
from stages.embedding.stage import find_missing_texts
from stages.planning.throughput import Floats, Ints

SAMPLE = 1_000
"""Texts of a role, and pairs, whose tokens are counted; drawn by a hash of their ids."""


@dataclass(frozen=True)
class Encoding:
    """What one encoder has to do. `texts`, `tokens` and `weight` stand side by side: the sample, both roles."""

    recipe: EncoderSpec
    name: str
    new: Mapping[str, int]
    """By role: texts that have no vector yet, each once."""
    texts: Sequence[tuple[str, str]]
    """(role, text)."""
    tokens: Ints
    """Tokens of each, uncut, as the encoder reads it."""
    weight: Floats
    """How many texts each stands for."""
    limit: int
    """Tokens that the model itself reads at most."""
    begun: bool
    """It has vectors already, of these texts or of others."""
    went_on: bool
    """There are lists of an earlier search beside its vectors."""


@dataclass(frozen=True)
class Table:
    """The counts that times, memory and disk follow from."""

    queries: int
    documents: int
    splits: Mapping[str, int]
    """Questions with a positive, by split."""
    positives: float
    """A train question has so many, in the mean."""
    several: int
    """Train questions that have more than one."""
    answered: int
    """Questions with an answer, which documents are searched for."""
    characters: int
    """Of all documents."""
    encodings: Sequence[Encoding]
    pairs: Sequence[tuple[str, str]]
    """A sample of (train question, document) as a reranker reads them."""
    pair_tokens: Ints
    """Tokens of each, uncut."""

    @property
    def train(self) -> int:
        """Train questions with a positive."""
        return self.splits.get("train", 0)


def read(params: EncodeParams, base: str, inputs: Mapping[str, Path], vectors: Path) -> Table:
    """Count the tables (queries, corpus, qrels, answers), and what the root `vectors` lacks of them.

    `base` is the reranker's model, whose tokens the pairs are counted in.
    """
    queries = read_table(inputs["queries"], QUERIES, ["query_id", "split"])
    positive = read_table(inputs["qrels"], QRELS).filter(pl.col("relevance") > 0)
    owners = positive.group_by("query_id").len().join(queries, on="query_id")
    splits = dict(owners.group_by("split").len().sort("split").iter_rows())
    judged = owners.filter(pl.col("split") == "train")["len"]
    characters = scan_documents(inputs["corpus"]).select(pl.col("text").str.len_chars().sum()).collect().item()
    names = (params.model, *params.extra_models)
    asked = owners.filter(pl.col("split") == "train")["query_id"]
    questions = _texts(inputs["queries"], "query", queries["query_id"].is_in(asked.implode()).to_numpy())
    documents = _texts(inputs["corpus"], "document", None)
    pairs = [(query, documents[place % len(documents)]) for place, query in enumerate(questions)] if documents else []
    return Table(
        queries=queries.height,
        documents=scan_table(inputs["corpus"], CORPUS).select(pl.len()).collect().item(),
        splits=splits,
        positives=float(judged.sum()) / max(len(judged), 1),
        several=int((judged > 1).sum()),
        answered=read_table(inputs["answers"], ANSWERS, ["query_id"])["query_id"].n_unique(),
        characters=int(characters or 0),
        encodings=[
            _encoding(made, name, new, inputs, vectors, params.max_length if place == 0 else None)
            for place, (name, (made, new)) in enumerate(
                zip(names, find_missing_texts(params, inputs, vectors), strict=True)
            )
        ],
        pairs=pairs,
        pair_tokens=counted(resolve_model(base), [query for query, _ in pairs], [text for _, text in pairs]),
    )


def _encoding(
    made: EncoderSpec,
    name: str,
    new: Mapping[str, Bools],
    inputs: Mapping[str, Path],
    vectors: Path,
    given: int | None,
) -> Encoding:
    folder = resolve_model(name)
    paths = {"query": inputs["queries"], "document": inputs["corpus"]}
    texts = {role: _texts(paths[role], role, rows) for role, rows in new.items()}
    count = {role: int(rows.sum()) for role, rows in new.items()}
    prompted = [made.prompt_for(role) + text for role, some in texts.items() for text in some]
    shares = [np.full(len(some), count[role] / max(len(some), 1)) for role, some in texts.items()]
    return Encoding(
        recipe=made,
        name=name,
        new=count,
        texts=[(role, text) for role, some in texts.items() for text in some],
        tokens=counted(folder, prompted),
        weight=np.concatenate(shares),
        limit=given or limit_of(folder),
        begun=any((vectors / made.key).glob("*.npy")),
        went_on=(vectors / made.key / "topk_cache" / "topk_cache.json").exists(),
    )


def _texts(path: Path, role: str, wanted: Bools | None) -> list[str]:
    """At most SAMPLE texts of the wanted rows of a table, by hash of their ids."""
    key, schema = ("query_id", QUERIES) if role == "query" else ("doc_id", CORPUS)
    ids = read_table(path, schema, [key])[key]
    ids = ids if wanted is None else ids.filter(pl.Series(wanted, dtype=pl.Boolean))
    drawn = sample_by_hash(ids, SAMPLE, "plan")
    rows = (scan_table(path, schema).select(key, text="query") if role == "query" else scan_documents(path)).filter(
        pl.col(key).is_in(pl.Series(drawn, dtype=pl.String).implode())
    )
    place = {one: place for place, one in enumerate(drawn)}
    return [text for _, text in sorted(rows.collect().iter_rows(), key=lambda row: place[row[0]])]


def counted(folder: Path, texts: Sequence[str], second: Sequence[str] | None = None) -> Ints:
    """Tokens of each text (with its `second`, where there is one) as the model in `folder` reads it,
    uncut: [n]."""
    if not texts:
        return np.empty(0, np.int64)
    from transformers import AutoTokenizer

    from stages.core.library_logging import silence_huggingface_logging

    with silence_huggingface_logging():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer(list(texts), list(second) if second is not None else None, return_attention_mask=False)
    return np.array([len(one) for one in ids["input_ids"]], np.int64)


def limit_of(folder: Path) -> int:
    """Tokens that an encoder reads of a text, if nobody says otherwise: as sentence-transformers has it."""

    def number(name: str, key: str) -> int:
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError):
            return 0
        return int(found) if isinstance(found, int | float) and 0 < found < 1e6 else 0

    return (
        number("sentence_bert_config.json", "max_seq_length")
        or number("tokenizer_config.json", "model_max_length")
        or number("config.json", "max_position_embeddings")
        or 512
    )

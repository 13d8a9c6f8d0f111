"""The lines of mined.jsonl, and that random choices depend only on the query and the document."""

import json

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core import schemas
from stages.core.errors import InputError
from stages.mining.sampling import sampler
from stages.mining.sampling import stage as sampling_stage
from stages.mining.sampling.sampler import pick_positives, select_negatives
from stages.mining.sampling.stage import Params
from stages.mining.sampling.strategies import build_eligible_pool
from tests.unit.stages.mining.collection import stand_in, table, tools, write

SURVIVORS = dict.fromkeys(("query_id", "doc_id", "score", "reason", "source"), pl.String) | {"score": pl.Float32}
KEEP_DUPLICATES = 2.0


def verdict(query_id: str, doc_id: str, rank: int, score: float, label: str, reason: str) -> tuple:
    return (query_id, doc_id, "curated_negative" if rank == 0 else "dense", rank, score, label, reason)


@pytest.fixture
def inputs(tmp_path):
    return write(
        tmp_path,
        queries=table(
            schemas.QUERIES,
            ("a", "What is α?", "train", "a"),
            ("b", "no_negatives", "train", "b"),
            ("c", "no_positive", "train", "c"),
            ("d", "of the test split", "test", "d"),
            ("e", "one negative", "train", "e"),
        ),
        corpus=table(
            schemas.CORPUS,
            ("n1", "first"),
            ("n2", "second"),
            ("n3", "third"),
            ("n4", "second"),
            ("n5", "fifth"),
            ("p1", "Answer\n“one”"),
            ("p2", "答案"),
            ("p3", "答案"),
        ),
        qrels=table(schemas.QRELS),
        qrels_scored=table(
            schemas.QRELS_SCORED,
            ("a", "n5", 0, 0.1),
            ("a", "p1", 1, 0.5),
            ("a", "p2", 2, 0.75),
            ("a", "p3", 1, 0.25),
            ("b", "p1", 1, 0.5),
            ("d", "p1", 1, 0.5),
            ("e", "p1", 1, 0.5),
        ),
        verdicts=table(
            schemas.VERDICTS,
            verdict("a", "n5", 0, 0.1, "negative", "curated_negative"),
            verdict("a", "n1", 1, 0.9, "ignored", "perc"),
            verdict("a", "p2", 2, 0.75, "positive", "known_positive"),
            verdict("a", "n4", 3, 0.4, "negative", "kept"),
            verdict("a", "n2", 4, 0.4, "negative", "kept"),
            verdict("a", "n3", 5, 0.3, "negative", "kept"),
            verdict("b", "n1", 1, 0.9, "ignored", "perc"),
            verdict("c", "n1", 1, 0.9, "negative", "kept"),
            verdict("d", "n1", 1, 0.9, "negative", "kept"),
            verdict("e", "n1", 1, 0.9, "negative", "kept"),
        ),
    )


def run(params: Params, inputs, tmp_path) -> tuple[list[dict], dict, bytes]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    summary = sampling_stage.run(params, inputs, out, tools(tmp_path))
    content = (out / "mined.jsonl").read_bytes()
    return [json.loads(line) for line in content.decode().splitlines()], summary, content


def test_the_lines_of_mined_jsonl(inputs, tmp_path):
    mined, summary, content = run(Params(num_negatives=3, near_duplicate_similarity=KEEP_DUPLICATES), inputs, tmp_path)
    assert mined == [
        {
            "query_id": "a",
            "query": "What is α?",
            "pos": ["答案", "Answer\n“one”"],  # by falling score; p3 repeats the text of p2
            "neg": ["fifth", "second", "third"],  # the curated one first; of two equal texts n2, by doc_id
            "pos_ids": ["p2", "p1"],
            "neg_ids": ["n5", "n2", "n3"],
            "pos_scores": [0.75, 0.5],
            "neg_scores": [0.1, 0.4, 0.3],
        },
        {
            "query_id": "e",
            "query": "one negative",
            "pos": ["Answer\n“one”"],
            "neg": ["first"],
            "pos_ids": ["p1"],
            "neg_ids": ["n1"],
            "pos_scores": [0.5],
            "neg_scores": [0.9],
        },
    ]
    assert "α".encode() in content
    assert content.endswith(b"}\n")
    assert summary == {
        "queries": 2,
        "positives": 3,
        "negatives": 4,
        "n_requested": 3,
        "negatives_per_query": 2.0,
        "fill_rate": round(4 / 9, 4),  # a, b and e need three each
        "n_underfilled": 1,
        "by_stratum": {"curated_negative": 1, "top": 3},
        "by_source": {"curated_negative": 1, "dense": 3},
        "hardness": 0.425,  # (0.1 + 0.4 + 0.3 + 0.9) / 4
        "n_duplicates_skipped": 0,
        "category": None,
        "n_weighted_negatives": 0,
        "expected_false_negative_rate": None,  # nothing is estimated
        "dropped_positives": None,
        "weighted_positives": None,
        "skipped_queries": {"no_positive": 1, "no_negatives": 1},
        "hubness": {"max_document_count": 1},
    }


def test_relabelled_candidates_are_positives_and_weights_are_written(inputs, tmp_path):
    rows = [(*verdict("a", "n1", 1, 0.9, "positive", "relabelled"), 0.95)]
    rows += [
        (*verdict("a", "n2", 2, 0.4, "negative", "weighted"), 0.25),
        (*verdict("a", "n3", 3, 0.3, "negative", "kept"), 0.05),
    ]
    verdicts = table(schemas.VERDICTS, *rows).with_columns(
        weight=pl.when(pl.col("reason") == "weighted").then(pl.lit(0.75, pl.Float32))
    )
    verdicts = verdicts.with_columns(
        pl.lit(None, pl.Boolean if name == "llm_judge" else pl.Float32).alias(name)
        for name in schemas.VERDICTS.names if name not in verdicts.columns
    ).select(schemas.VERDICTS.names)  # fmt: skip
    changed = inputs | write(tmp_path, verdicts=verdicts)
    [mined], summary, _ = run(Params(num_negatives=3, near_duplicate_similarity=KEEP_DUPLICATES), changed, tmp_path)
    assert mined["pos_ids"] == ["n1", "p2", "p1"]
    assert (mined["neg_ids"], mined["neg_weights"]) == (["n2", "n3"], [0.75, 1.0])
    assert summary["expected_false_negative_rate"] == 0.15  # (0.25 + 0.05) / 2
    assert summary["n_weighted_negatives"] == 1


@pytest.mark.parametrize("sampling", ["top", "random", "simans"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_block_size_changes_no_byte(sampling, rows, inputs, tmp_path, monkeypatch):
    params = Params(num_negatives=2, sampling=sampling, near_duplicate_similarity=KEEP_DUPLICATES)
    _, summary, content = run(params, inputs, tmp_path)
    monkeypatch.setattr(sampler, "SAMPLING_ROWS_PER_BLOCK", rows)
    assert run(params, inputs, tmp_path)[1:] == (summary, content)
    monkeypatch.setattr(sampling_stage, "MAX_TEXT_BYTES", 1)
    assert run(params, inputs, tmp_path)[1:] == (summary, content)


def test_blocks_are_grouped_by_the_memory_of_their_texts(tmp_path):
    corpus = table(schemas.CORPUS, *((f"d{i:03}", f"{i:03}" + "x" * 1000) for i in range(100)))
    found = write(tmp_path, corpus=corpus)
    assert (
        sampling_stage.MAX_TEXT_BYTES / 1600
        < sampling_stage.estimate_max_documents(found["corpus"])
        < sampling_stage.MAX_TEXT_BYTES / 1500
    )
    titled = table(schemas.CORPUS, *((f"d{i:03}", f"{i:03}", f"{i:03}" + "x" * 1000) for i in range(100)))
    found = write(tmp_path, corpus=titled)
    assert (
        sampling_stage.MAX_TEXT_BYTES / 1650
        < sampling_stage.estimate_max_documents(found["corpus"])
        < sampling_stage.MAX_TEXT_BYTES / 1500
    )
    found = write(tmp_path, corpus=table(schemas.CORPUS))
    assert (
        0
        < sampling_stage.estimate_max_documents(found["corpus"])
        <= sampling_stage.MAX_TEXT_BYTES // sampling_stage.DOCUMENT_OVERHEAD_BYTES
    )
    documents = pl.DataFrame({"doc_id": ["a", "b"]})
    blocks = [sampler.SampledBlock(documents, documents.head(n), documents.head(1), 0, documents) for n in (1, 2, 1, 0)]
    assert list(sampling_stage.group_blocks(blocks, 4)) == [blocks[:2], blocks[2:]]
    assert list(sampling_stage.group_blocks(blocks, 0)) == [[block] for block in blocks]
    assert list(sampling_stage.group_blocks([], 4)) == []


def test_trying_the_best_candidates_first_changes_no_byte(tmp_path, monkeypatch):
    """Texts, vectors and scores repeat, so that the best candidates often do not fill a query."""
    n_duplicates_skipped = 0
    for seed in range(25):
        random = np.random.default_rng(seed)
        documents, queries = [f"d{i:02}" for i in range(20)], ["q0", "q1", "q2"]
        angles = random.integers(0, 8, 20)
        stand_in(monkeypatch, {d: [np.cos(a), np.sin(a)] for d, a in zip(documents, angles, strict=True)})
        rows = []
        for query in queries:
            listed = random.permutation(20)[: random.integers(3, 20)]
            scores = -np.sort(-random.choice([0.2, 0.4, 0.6, 0.8], len(listed)))
            for rank, (document, score) in enumerate(zip(listed, scores, strict=True), 1):
                curated = random.random() < 0.1
                reason = "curated_negative" if curated else "kept"
                rows.append(verdict(query, documents[document], 0 if curated else rank, score, "negative", reason))
        found = write(
            tmp_path,
            queries=table(schemas.QUERIES, *((q, f"the question {q}", "train", q) for q in queries)),
            corpus=table(schemas.CORPUS, *((d, f"text {random.integers(0, 14)}") for d in documents)),
            qrels_scored=table(schemas.QRELS_SCORED, *((q, "d00", 1, 0.9) for q in queries)),
            verdicts=table(schemas.VERDICTS, *rows),
            qrels=table(schemas.QRELS),
        ) | {"encoder": tmp_path / "encoder.json"}
        monkeypatch.setattr(sampler, "CANDIDATES_PER_NEGATIVE", 1_000)
        expected = run(Params(num_negatives=4), found, tmp_path)
        monkeypatch.setattr(sampler, "CANDIDATES_PER_NEGATIVE", 1)
        assert run(Params(num_negatives=4), found, tmp_path) == expected
        n_duplicates_skipped += expected[1]["n_duplicates_skipped"]
    assert n_duplicates_skipped > 25


def test_no_negative_at_all_is_an_error(inputs, tmp_path):
    empty = write(tmp_path, verdicts=table(schemas.VERDICTS))
    with pytest.raises(InputError, match=r"for the 4 train questions \(1 have no positive\)"):
        run(Params(near_duplicate_similarity=KEEP_DUPLICATES), inputs | empty, tmp_path)


def test_the_text_of_a_positive_is_never_a_negative():
    survivors = pl.DataFrame(
        [("q", "n", 0.9, "kept", "dense"), ("q", "m", 0.8, "kept", "dense")], schema=SURVIVORS, orient="row"
    )
    keys = pl.DataFrame({"doc_id": ["p", "n", "m"], "cluster": [1, 1, 2]}, schema_overrides={"cluster": pl.UInt64})
    positives = pick_positives(
        pl.DataFrame({"query_id": ["q"], "doc_id": ["p"], "relevance": [1], "score": [0.5]}), keys
    )
    assert select_negatives(Params(), build_eligible_pool(survivors, positives, keys, None))[0]["doc_id"].to_list() == [
        "m"
    ]


def select(documents: dict[str, tuple[float, str]], params: Params, query_id: str = "q") -> list[tuple[str, str]]:
    """The (doc_id, stratum) selected for one query from documents {doc_id: (score, reason)} with distinct texts."""
    rows = [(query_id, doc_id, score, reason, "dense") for doc_id, (score, reason) in documents.items()]
    survivors = pl.DataFrame(rows, schema=SURVIVORS, orient="row")
    keys = pl.DataFrame(
        {"doc_id": [*documents, "p"], "cluster": list(range(len(documents) + 1))},
        schema_overrides={"cluster": pl.UInt64},
    )
    positives = pl.DataFrame({"query_id": [query_id], "doc_id": ["p"], "score": [0.95], "cluster": [len(documents)]})
    positives = positives.cast({"cluster": pl.UInt64, "score": pl.Float32})
    pool = build_eligible_pool(survivors, positives, keys, None)
    return select_negatives(params, pool)[0].select("doc_id", "stratum").rows()


NINE = {f"d{i}": (1 - i / 10, "kept") for i in range(9)}


def test_curated_negatives_come_first():
    documents = NINE | {"x": (-0.5, "curated_negative"), "y": (0.0, "curated_negative")}
    assert select(documents, Params(num_negatives=3)) == [
        ("y", "curated_negative"),
        ("x", "curated_negative"),
        ("d0", "top"),
    ]
    assert select(documents, Params(num_negatives=1)) == [("y", "curated_negative")]


@pytest.mark.parametrize("sampling", ["top", "random", "simans"])
def test_too_few_candidates_are_all_selected(sampling):
    documents = {name: NINE[name] for name in ("d0", "d4")}
    assert [doc_id for doc_id, _ in select(documents, Params(sampling=sampling))] == ["d0", "d4"]


def test_random_choices_depend_on_the_seed_and_the_query():
    selections = {
        tuple(doc_id for doc_id, _ in select(NINE, Params(num_negatives=4, sampling="random", seed=seed), query_id))
        for seed in range(3)
        for query_id in ("q", "r")
    }
    assert len(selections) > 3


@settings(max_examples=60)
@given(
    scores=st.dictionaries(st.text("abcxyz", min_size=1, max_size=3), st.integers(0, 5), min_size=1, max_size=12),
    curated=st.sets(st.integers(0, 11), max_size=3),
    negatives=st.integers(1, 8),
    sampling=st.sampled_from(["top", "random"]),
    seed=st.integers(0, 3),
)
def test_selection_equals_a_sort(scores, curated, negatives, sampling, seed):
    documents = {
        doc_id: (float(score), "curated_negative" if i in curated else "kept")
        for i, (doc_id, score) in enumerate(scores.items())
    }

    def sort_key(doc_id: str) -> tuple:
        score, reason = documents[doc_id]
        if reason == "curated_negative":
            return 0, -score, doc_id
        hashed = xxhash.xxh3_64_intdigest(f"{seed}:compose:q:{doc_id}".encode())
        return 1, hashed if sampling == "random" else -score, doc_id

    expected = set(sorted(documents, key=sort_key)[:negatives])
    found = [doc_id for doc_id, _ in select(documents, Params(num_negatives=negatives, sampling=sampling, seed=seed))]
    assert set(found) == expected
    assert found == sorted(found, key=lambda d: (documents[d][1] != "curated_negative", -documents[d][0], d))


@settings(max_examples=40)
@given(others=st.sets(st.integers(20, 60), max_size=12), negatives=st.integers(1, 9))
def test_added_documents_do_not_reorder_the_others(others, negatives):
    params = Params(num_negatives=negatives, sampling="random")
    before = {doc_id for doc_id, _ in select(NINE, params)}
    more = NINE | {f"d{i}": (1 - i / 100, "kept") for i in others}
    after = {doc_id for doc_id, _ in select(more, params)}
    assert after & set(NINE) <= before
    assert len(after) == min(negatives, len(more))


def weight_verdicts(weights: tuple[float | None, ...]) -> pl.DataFrame:
    """Verdicts of query a with `weights`."""
    rows = [verdict("a", f"n{i}", i, 0.5 - i / 10, "negative", "kept") for i in (1, 2, 3)]
    frame = table(schemas.VERDICTS, *rows, verdict("e", "n1", 1, 0.9, "negative", "kept"))
    return frame.with_columns(pl.Series("weight", [*weights, None], dtype=pl.Float32))


def test_weights_are_written_in_every_line_or_in_none(inputs, tmp_path):
    params = Params(near_duplicate_similarity=KEEP_DUPLICATES)
    found = write(tmp_path, verdicts=weight_verdicts((0.25, None, 1.0)))
    mined, summary, _ = run(params, inputs | found, tmp_path)
    assert [line["neg_weights"] for line in mined] == [[0.25, 1.0, 1.0], [1.0]]
    assert [len(line["neg"]) for line in mined] == [3, 1]
    assert summary["n_weighted_negatives"] == 1
    found = write(tmp_path, verdicts=weight_verdicts((None, 1.0, None)))
    mined, summary, _ = run(params, inputs | found, tmp_path)
    assert not any("neg_weights" in line for line in mined)
    assert summary["n_weighted_negatives"] == 0


VECTORS = {"n1": [1.0, 0.0], "n2": [0.9999, 0.01], "n3": [0.0, 1.0], "n4": [0.9999, 0.01], "n5": [1.0, 0.0]}


def test_near_duplicates_are_skipped_by_default(inputs, tmp_path, monkeypatch):
    stand_in(monkeypatch, VECTORS)
    mined, summary, _ = run(Params(), inputs | {"encoder": tmp_path / "encoder.json"}, tmp_path)
    # n2 is a near-duplicate of n5, which is curated
    assert [line["neg_ids"] for line in mined] == [["n5", "n3"], ["n1"]]
    assert summary["n_duplicates_skipped"] == 1
    assert summary["negatives"] == 3


def test_hub_cap_limits_the_queries_of_a_document(inputs, tmp_path, monkeypatch):
    verdicts = [verdict(q, "n1", 1, s, "negative", "kept") for q, s in (("a", 0.3), ("b", 0.6), ("e", 0.9))]
    verdicts += [verdict(q, "n2", 2, 0.2, "negative", "kept") for q in "abe"]
    judged = pl.read_parquet(inputs["qrels_scored"]).filter(pl.col("relevance") > 0)
    found = write(tmp_path, verdicts=table(schemas.VERDICTS, *verdicts), qrels_scored=judged)
    params = Params(num_negatives=1, hub_cap=2, near_duplicate_similarity=KEEP_DUPLICATES)
    mined, summary, content = run(params, inputs | found, tmp_path)
    assert {line["query_id"]: line["neg_ids"] for line in mined} == {"a": ["n2"], "b": ["n1"], "e": ["n1"]}
    assert summary["hubness"] == {"max_document_count": 2, "n_capped_documents": 1, "n_rejected": 1}
    monkeypatch.setattr(sampler, "SAMPLING_ROWS_PER_BLOCK", 1)
    assert run(params, inputs | found, tmp_path)[2] == content
    # curated negatives do not count and are never rejected
    curated = table(schemas.VERDICTS, *(verdict(q, "n1", 0, 0.5, "negative", "curated_negative") for q in "abe"))
    found = write(tmp_path, verdicts=curated)
    mined, summary, _ = run(params, inputs | found, tmp_path)
    assert [line["neg_ids"] for line in mined] == [["n1"]] * 3
    assert summary["hubness"] == {"max_document_count": 3, "n_capped_documents": 0, "n_rejected": 0}


def test_an_unmet_hub_cap_is_logged(inputs, tmp_path):
    # three questions have a positive and need three or four each; each of eight documents may be a negative once
    out, context = tmp_path / "out", tools(tmp_path)
    out.mkdir()

    def run_messages(**settings) -> list[str]:
        context.progress.messages.clear()
        sampling_stage.run(Params(near_duplicate_similarity=KEEP_DUPLICATES, **settings), inputs, out, context)
        return [line for line in context.progress.messages if "hub_cap" in line]

    assert run_messages(num_negatives=3, hub_cap=1) == []  # 8 of the 9: n5 is curated and not capped
    [line] = run_messages(num_negatives=4, hub_cap=1)
    assert "8 documents allow 8 negatives, and 11 are needed. Set hub_cap to 2" in line
    assert line.endswith("Of 3 questions 2 have fewer than 4 negatives, 1 have none")
    assert run_messages(num_negatives=4, hub_cap=2) == []
    assert run_messages(num_negatives=4) == []


def test_categories_are_counted(inputs, tmp_path):
    corpus = pl.read_parquet(inputs["corpus"]).with_columns(
        category=pl.col("doc_id").replace_strict({"p2": "x", "n3": "x", "n1": "y"}, default=None)
    )
    found = write(tmp_path, corpus=corpus)
    params = Params(num_negatives=2, prefer_category=True, near_duplicate_similarity=KEEP_DUPLICATES)
    mined, summary, _ = run(params, inputs | found, tmp_path)
    # n5 is curated; n3 has the category of p2, though n2 is harder
    assert [line["neg_ids"] for line in mined] == [["n5", "n3"], ["n1"]]
    assert summary["category"] == {"same": 1, "other": 1, "queries_without_category": 2}
    context = tools(tmp_path)
    found = write(tmp_path, corpus=corpus.with_columns(category=pl.lit(None, pl.String)))
    sampling_stage.run(params, inputs | found, tmp_path / "out", context)
    assert "no positive has a category" in context.progress.messages[-1]

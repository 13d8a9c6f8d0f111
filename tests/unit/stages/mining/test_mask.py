"""The precedence table of the mask, on a collection whose verdicts are computed by hand."""

import json

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from stages.core import schemas
from stages.core.errors import InputError
from stages.mining import candidate_features, mask
from stages.mining.candidates.merge import merge_sources
from stages.mining.mask import Params
from stages.mining.verify import stage as verify_stage
from tests.unit.stages.mining.collection import stand_in, table, tools, write

# Document vectors lie on a circle: the number is the cosine with document p, the only positive of a.
COSINE = {
    "p": 1.0, "again": -0.9, "copy": 0.3, "wrong": 0.2, "holds": 0.1, "near": 0.985, "high": 0.6,
    "edge": 0.5, "low": 0.4, "far": 0.0, "twin": 0.3,
}  # fmt: skip
VECTORS = {name: [cosine, (1 - cosine**2) ** 0.5] for name, cosine in COSINE.items()}
TEXTS = {name: f"the text of {name}" for name in COSINE} | {
    "copy": "The text of p",
    "p": "The text of p",
    "twin": "the text of again",
    "holds": "It was signed in October 1973, they say.",
}


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    stand_in(monkeypatch, VECTORS)
    names = ["again", "p", "copy", "wrong", "holds", "near", "high", "edge", "low"]
    scores = [0.95, 0.8, 0.9, 0.97, 0.5, 0.5, 0.77, 0.76, 0.1]
    ranked = sorted(zip(names, scores, strict=True), key=lambda row: -row[1])
    return write(
        tmp_path,
        queries=table(
            schemas.QUERIES,
            ("a", "When was it signed?", "train", "a"),
            ("b", "when was it signed", "train", "b"),
            ("c", "Who knows?", "test", "c"),
        ),
        corpus=table(schemas.CORPUS, *sorted(TEXTS.items())),
        qrels=table(schemas.QRELS, ("a", "p", 1), ("b", "again", 1)),
        answers=table(schemas.ANSWERS, ("a", "October 1973"), ("a", "yes")),
        candidates=table(
            schemas.CANDIDATES,
            *[("a", name, "dense", rank + 1, score) for rank, (name, score) in enumerate(ranked)],
            ("b", "twin", "dense", 1, 0.9),
            ("c", "low", "dense", 1, 0.9),
        ),
        qrels_scored=table(
            schemas.QRELS_SCORED,
            ("a", "far", 0, -0.2),
            ("a", "p", 1, 0.8),
            ("a", "wrong", 0, 0.97),
            ("b", "again", 1, 0.7),
            ("b", "twin", 0, 0.9),
            ("c", "high", 0, 0.3),
        ),
    ) | {"encoder": tmp_path}


def run_mask(inputs, tmp_path, feature_settings=None, **settings) -> tuple[pl.DataFrame, dict]:
    """The verdicts and the summary under perc or other `settings`, without an estimate."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    context = tools(tmp_path)
    feature_params = candidate_features.Params(estimate_false_negatives=False, **(feature_settings or {}))
    candidate_features.run(feature_params, inputs, out, context)
    inputs = inputs | {name: out / file for name, file in FILES.items()}
    verify_stage.run(verify_stage.Params(), inputs, out, context)
    summary = mask.run(Params(**{"mask": "perc"} | settings), inputs, out, context)
    verdicts = schemas.read_table(out / "verdicts.parquet", schemas.VERDICTS)
    return verdicts, summary | {"messages": context.progress.messages}


FILES = {
    "features": "features.parquet", "holdout_candidates": "holdout_candidates.parquet", "estimator": "estimator.json",
    "verifier_scores": "verifier_scores.parquet", "holdout_verified": "holdout_verified.parquet",
}  # fmt: skip


def test_every_reason(inputs, tmp_path):
    # perc: 0.95 x 0.8 = 0.76 for a. b is a paraphrase of a, so the positives of each are ignored for the other.
    found, summary = run_mask(inputs, tmp_path)
    assert found.select("query_id", "doc_id", "source", "rank", "verdict", "reason").rows() == [
        ("a", "wrong", "dense", 1, "negative", "curated_negative"),  # although it is above the threshold
        ("a", "again", "dense", 2, "ignored", "repeated_query"),
        ("a", "copy", "dense", 3, "ignored", "same_text"),
        ("a", "p", "dense", 4, "positive", "known_positive"),
        ("a", "high", "dense", 5, "ignored", "perc"),  # 0.77 > 0.76
        ("a", "edge", "dense", 6, "negative", "kept"),  # 0.76 is not above
        ("a", "holds", "dense", 7, "ignored", "contains_answer"),
        ("a", "near", "dense", 8, "ignored", "near_duplicate"),  # cosine 0.985
        ("a", "low", "dense", 9, "negative", "kept"),
        ("a", "far", "curated_negative", 0, "negative", "curated_negative"),  # not retrieved: added
        ("b", "twin", "dense", 1, "ignored", "same_text"),  # curated, but it has the text of a positive
        ("c", "low", "dense", 1, "ignored", "no_positive"),
        ("c", "high", "curated_negative", 0, "negative", "curated_negative"),
    ]
    assert found["p_false_negative"].null_count() == len(found)
    by = {(row["query_id"], row["doc_id"]): row for row in found.iter_rows(named=True)}
    assert by["a", "high"]["threshold"] == pytest.approx(0.76)
    assert by["a", "near"]["positive_similarity"] == pytest.approx(0.985)
    assert by["a", "far"]["score"] == pytest.approx(-0.2)
    assert by["c", "low"]["threshold"] is None
    assert by["c", "low"]["positive_similarity"] is None
    messages = summary.pop("messages")
    assert summary == {
        "rule": "perc",
        "threshold": 0.95,
        "queries": 3,
        "candidates": 11,
        "verdicts": {
            "negative": {"curated_negative": 3, "kept": 2},
            "positive": {"known_positive": 1},
            "ignored": {
                "repeated_query": 1,
                "same_text": 2,
                "contains_answer": 1,
                "near_duplicate": 1,
                "no_positive": 1,
                "perc": 1,
            },
        },
        "curated_negatives_added": 2,
        "curated_negatives_contradicting": 1,
        "queries_without_positive": 1,
        "queries_without_negative": 1,
    }
    assert len(messages) == 2


def test_positives_of_a_paraphrase_in_another_split_are_ignored(inputs, tmp_path):
    before, _ = run_mask(inputs, tmp_path)
    queries = schemas.read_table(inputs["queries"], schemas.QUERIES)
    queries = queries.with_columns(split=pl.when(pl.col("query_id") == "b").then(pl.lit("test")).otherwise("split"))
    found, _ = run_mask(inputs | write(tmp_path, queries=queries), tmp_path)
    [again] = found.filter((pl.col("query_id") == "a") & (pl.col("doc_id") == "again")).to_dicts()
    assert (again["verdict"], again["reason"]) == ("ignored", "repeated_query")
    assert found.filter(pl.col("query_id") == "a", pl.col("verdict") == "positive")["doc_id"].to_list() == ["p"]
    assert found.equals(before)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"mask": "none"}, {"high", "edge", "low"}),
        (
            {"mask": "none", "exclude_answers": False, "near_duplicate_similarity": 1.5},
            {"high", "edge", "low", "holds", "near"},
        ),
        ({"mask": "none", "near_duplicate_similarity": 0.6}, {"edge", "low"}),
        ({"mask": "window", "rank_window": (5, 6)}, {"edge"}),
        ({"mask": "abs"}, {"low"}),
        ({"mask": "abs", "threshold": 0.765}, {"edge", "low"}),
        ({"mask": "margin"}, {"low"}),
        ({"mask": "infonce"}, {"high", "edge", "low"}),
    ],
)
def test_parameters(settings, kept, inputs, tmp_path):
    feature_settings = {name: settings[name] for name in settings if name in candidate_features.Params.model_fields}
    mask_settings = {name: settings[name] for name in settings if name not in feature_settings}
    found, _ = run_mask(inputs, tmp_path, feature_settings, **mask_settings)
    mine = found.filter((pl.col("query_id") == "a") & (pl.col("reason") == "kept"))
    assert set(mine["doc_id"]) == kept


def test_a_rule_that_needs_no_positive_applies_to_every_query(inputs, tmp_path):
    found, summary = run_mask(inputs, tmp_path, mask="abs", threshold=0.9)
    [last] = found.filter((pl.col("query_id") == "c") & (pl.col("doc_id") == "low")).to_dicts()
    assert (last["query_id"], last["doc_id"], last["verdict"], last["reason"]) == ("c", "low", "negative", "kept")
    assert summary["queries_without_positive"] == 0


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_the_block_size_changes_no_verdict(rows, inputs, tmp_path, monkeypatch):
    expected, summary = run_mask(inputs, tmp_path)
    monkeypatch.setattr(mask, "MASK_ROWS_PER_BLOCK", rows)
    monkeypatch.setattr(candidate_features, "CANDIDATE_ROWS_PER_BATCH", rows)
    found, again = run_mask(inputs, tmp_path)
    assert found.equals(expected)
    assert again == summary


def test_the_same_run_gives_the_same_bytes(inputs, tmp_path):
    run_mask(inputs, tmp_path)
    first = (tmp_path / "out" / "verdicts.parquet").read_bytes()
    run_mask(inputs, tmp_path)
    assert (tmp_path / "out" / "verdicts.parquet").read_bytes() == first


def test_no_candidates_at_all(inputs, tmp_path):
    empty = write(tmp_path, candidates=table(schemas.CANDIDATES), qrels_scored=table(schemas.QRELS_SCORED))
    found, summary = run_mask(inputs | empty, tmp_path)
    assert len(found) == 0
    assert summary["verdicts"] == {"negative": {}, "positive": {}, "ignored": {}}
    assert summary["queries_without_negative"] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": "none", "threshold": 0.9}, "has no threshold"),
        ({"mask": "perc", "threshold": 95}, "use a share"),
        ({"rank_window": (20, 20)}, "leaves no rank"),
        ({"threshold": float("nan")}, "finite"),
    ],
)
def test_invalid_parameters(settings, message):
    with pytest.raises(ValidationError, match=message):
        Params(**settings)


def test_a_pair_of_several_sources_is_one_row():
    found = table(
        schemas.CANDIDATES,
        ("q", "a", "dense", 1, 0.9),
        ("q", "b", "dense", 2, 0.5),
        ("q", "b", "bm25", 1, 17.0),
        ("q", "c", "bm25", 4, 3.0),
        ("q", "c", "random", 2, 0.0),
        ("r", "c", "random", 7, 0.0),
    )
    rows = merge_sources(found, lambda pairs: np.array([0.1, 0.2], np.float32)[: len(pairs)])
    assert rows.rows() == [
        ("q", "a", "dense", 1, pytest.approx(0.9)),
        ("q", "b", "dense+bm25", 2, 0.5),
        ("q", "c", "bm25+random", 2, pytest.approx(0.1)),  # not found by the first encoder: scored
        ("r", "c", "random", 7, pytest.approx(0.2)),
    ]
    alone = found.head(2)
    assert merge_sources(alone, lambda pairs: pytest.fail("nothing to score")).equals(alone)


@pytest.mark.parametrize("settings", [{"mask": "learned"}, {"relabel": "positive"}, {"relabel": "weight"}])
def test_settings_that_need_the_estimate(settings, inputs, tmp_path):
    with pytest.raises(InputError, match="estimate_false_negatives = false"):
        run_mask(inputs, tmp_path, **settings)


def test_an_unreliable_estimate_turns_the_learned_mask_into_perc(inputs, tmp_path):
    expected, _ = run_mask(inputs, tmp_path)
    out = tmp_path / "out"
    estimator = {
        "source": "pretrained",
        "table_weight": 0.0,
        "n_held_out_positives": 0,
        "n_table_queries": 0,
        "unreliable_reason": "it is odd",
        "models": {},
    }
    (out / "estimator.json").write_text(json.dumps(estimator))
    files, context = {name: out / file for name, file in FILES.items()}, tools(tmp_path)
    summary = mask.run(Params(mask="learned"), inputs | files, out, context)
    assert schemas.read_table(out / "verdicts.parquet", schemas.VERDICTS).equals(expected)
    assert (summary["rule"], summary["threshold"], summary["verdicts"]["ignored"]["perc"]) == ("perc", 0.95, 1)
    assert (summary["estimate"]["unreliable_reason"], summary["estimate"]["lambda"]) == ("it is odd", None)
    [line] = [line for line in context.progress.messages if "it is odd" in line]
    assert "perc is used" in line


def assign(p: dict[str, float | None], llm_judge: dict[str, bool] | None = None, **settings) -> pl.DataFrame:
    """The verdicts on candidates of one query with these p and the scores 0.9, 0.8, ...; its positive scores 0.8."""
    rows = [("q", doc, "dense", i + 1, 0.9 - 0.1 * i) for i, doc in enumerate(p)]
    rows = table(schemas.CANDIDATES, *rows).with_columns(
        *(pl.lit(None, pl.Boolean).alias(name) for name in ("curated_negative", "same_text", "contains_answer")),
        pl.lit(None, pl.String).alias("positive_kind"),
        pl.lit(None, pl.Float32).alias("positive_similarity"),
        *(pl.lit(None, pl.Float32).alias(name) for name in schemas.FEATURES),
        pl.Series("p_false_negative", list(p.values()), pl.Float32),
        pl.lit(None, pl.Float32).alias("verifier_score"),
        pl.Series("llm_judge", [(llm_judge or {}).get(name) for name in p], pl.Boolean),
        verifier_false_negative=pl.lit(None, pl.Boolean),
    )
    settings = {"mask": "perc"} | settings
    params = Params(**settings, threshold=1.0 if settings["mask"] == "perc" else None)
    return mask.assign_verdicts(params, rows, table(schemas.QRELS_SCORED, ("q", "x", 1, 0.8)))


def test_relabel_positive():
    found = assign({"a": 0.95, "b": 0.99}, relabel="positive")
    # the rule excludes a, whose 0.9 is above the positive's 0.8; it keeps b with 0.8, whatever its p is
    assert found.select("doc_id", "verdict", "reason", "weight").rows() == [
        ("a", "positive", "relabelled", None),
        ("b", "negative", "kept", None),
    ]
    assert assign({"a": 0.95}, relabel="positive", relabel_min_probability=0.96)["reason"].to_list() == ["perc"]


def test_a_document_that_the_llm_judge_finds_relevant_is_never_a_negative():
    for settings in ({"mask": "none"}, {"mask": "perc"}, {"mask": "none", "relabel": "weight"}):
        found = assign({"a": 0.98, "b": 0.01}, llm_judge={"a": True, "b": False}, **settings)
        reasons = dict(found.select("doc_id", "reason").iter_rows())
        assert reasons == {"a": "llm_judge", "b": "kept"}
    found = assign({"a": 0.98}, llm_judge={"a": True}, relabel="positive", mask="none")
    assert found.select("verdict", "reason").rows() == [("positive", "relabelled")]


def test_relabel_weight():
    found = assign({"a": 0.75, "b": 0.5}, relabel="weight")
    assert found.select("doc_id", "verdict", "reason", "weight").rows() == [
        ("a", "negative", "weighted", 0.25),
        ("b", "negative", "kept", None),
    ]
    assert assign({"a": None}, relabel="weight")["reason"].to_list() == ["perc"]


def run_relabel(inputs, tmp_path, p: float, **settings) -> list[str]:
    """The messages about relabel if p_false_negative is `p` for `high`, which perc excludes, and 0.97 for `edge`."""
    run_mask(inputs, tmp_path)
    out = tmp_path / "out"
    estimator = {
        "source": "pretrained",
        "table_weight": 0.0,
        "n_held_out_positives": 0,
        "n_table_queries": 0,
        "unreliable_reason": None,
        "models": {},
    }
    (out / "estimator.json").write_text(json.dumps(estimator))
    features = schemas.read_table(out / "features.parquet", schemas.CANDIDATE_FEATURES)
    is_a = pl.col("query_id") == "a"
    estimated = (
        pl.when(is_a & (pl.col("doc_id") == "high")).then(p).when(is_a & (pl.col("doc_id") == "edge")).then(0.97)
    )
    schemas.write_table(
        features.with_columns(p_false_negative=estimated.cast(pl.Float32)),
        schemas.CANDIDATE_FEATURES,
        out / "features.parquet",
    )
    context = tools(tmp_path)
    files = {name: out / file for name, file in FILES.items()}
    mask.run(Params(**{"mask": "perc", "relabel": "positive"} | settings), inputs | files, out, context)
    return [line for line in context.progress.messages if "relabel" in line]


@pytest.mark.parametrize("rows", [1, 1000])
def test_relabel_without_effect_logs_the_highest_probability(rows, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(mask, "MASK_ROWS_PER_BLOCK", rows)
    [line] = run_relabel(inputs, tmp_path, 0.8614)
    assert "0.861, below relabel_min_probability = 0.9" in line
    assert run_relabel(inputs, tmp_path, 0.91) == []
    assert run_relabel(inputs, tmp_path, 0.8614, relabel="no") == []
    [line] = run_relabel(inputs, tmp_path, 0.8614, mask="none")
    assert "no candidate with an estimate is excluded" in line

"""The report: its figures are those of the artifacts, and nothing in a text can break it or be loaded by it."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.report.charts import Dot, Marker, Series, build_dot_plot, build_histogram, compute_ticks
from pipeline.report.examples import sample_queries
from pipeline.report.page import describe_mask_rule, render_report
from pipeline.report.templating import MAX_TEXT_CHARS, shorten
from pipeline.workflow.artifact_store import Artifact
from pipeline.workflow.graph import PIPELINE
from stages.core.schemas import CORPUS, QRELS_SCORED, QUERIES, VERDICTS, write_table
from stages.evaluation.conclusions import build_verdict
from tests.encodings import make_encoder_fit

Artifacts = dict[str, Artifact]
Build = Callable[..., Artifacts]

VOID = {"meta", "line", "rect", "circle"}
NAMES = ("nDCG@10", "MRR@10", "MAP@100", "Hit@1")


def compared(found: float, low: float | None, high: float | None, p: float | None = 0.002) -> dict[str, Any]:
    """One test of metrics.json."""
    return {"difference": found, "low": low, "high": high, "p": p}


def measured(split: str = "test", low: float | None = 0.051, high: float | None = 0.114) -> dict[str, Any]:
    """metrics.json as `stages.evaluation.stage` writes it, with a figure of its own in every cell."""

    def rows(start: float) -> dict[str, dict[str, float]]:
        systems = ("bm25", "embedder", "base_reranker", "reranker", "fused")
        return {
            row: {name: round(start + 0.1 * i + 0.011 * j, 6) for j, name in enumerate(NAMES)}
            for i, row in enumerate(systems)
        }

    p = None if low is None else 0.002
    differences = {
        row: {name: compared(0.083, low, high, p) for name in NAMES}
        for row in ("bm25", "base_reranker", "reranker", "fused")
    }
    listed = {
        "n_queries": 103,
        "n_groups": 97,
        "mean_documents_per_query": 5.0,
        "recall_at_top_k": 0.796,
        "n_queries_available": 150,
    }
    nothing = {
        "n_queries": 0,
        "n_groups": 0,
        "mean_documents_per_query": 0,
        "recall_at_top_k": None,
        "n_queries_available": 0,
    }
    splits = {"test": ("dev", "test"), "dev": ("dev",), "": ()}[split]
    found = {
        **{name: rows(start) if name in splits else {} for name, start in (("dev", 0.302), ("test", 0.401))},
        "positives_forced": {
            name: rows(start) if name in splits else {} for name, start in (("dev", 0.503), ("test", 0.504))
        },
        "comparisons": {name: differences if name in splits else {} for name in ("dev", "test")},
        "fusion": {"weight": 0.85, "selected_on": "dev" if splits else None},
        "candidate_lists": {name: listed if name in splits else nothing for name in ("dev", "test")},
        "collapse_reason": None,
        "parameters": {"top_k": 50, "max_queries": 1000, "samples": 2000, "seed": 42, "dtype": "auto"},
        "base_has_new_head": False,
    }
    return found | {"verdict": {"test": build_verdict(found)}}


def measured_retrievers() -> dict[str, Any]:
    """retrievers.json, with a figure of its own in every cell."""
    views: dict[str, Any] = {}
    for view, start in (("corpus", 0.01), ("lists", 0.02)):
        rows = {
            split: {
                row: {name: round(start + 0.2 * i + 0.05 * j + 0.003 * k, 6) for k, name in enumerate(NAMES)}
                for j, row in enumerate(("bm25", "embedder", "hybrid"))
            }
            for i, split in enumerate(("train", "dev", "test"))
        }
        tests = {row: {name: compared(0.05, 0.01, 0.09) for name in NAMES} for row in ("bm25", "hybrid")}
        views[view] = rows | {"comparisons": dict.fromkeys(rows, tests), "fusion": {"weight": 0.2}}
    return views


SUMMARIES: dict[str, dict[str, Any]] = {
    "pairs": {
        "rows_in": 1643,
        "standalone_rows": 20,
        "rejected": {"empty question": 17, "too short": 3},
        "rows_used": 1603,
        "merged_queries": 27,
        "merged_documents": 0,
        "paraphrases_across_splits": 0,
        "label_overrides": 0,
        "queries": 1576,
        "splits": {"train": 1211, "dev": 181, "test": 184},
        "documents": 905,
        "chunks": 0,
        "documents_across_splits": 0,
        "curated_negatives": 12,
        "positives_per_query": {"mean": 1.234, "max": 5},
        "notes": ["the id column is not used"],
    },
    "encode": {"model": "/home/someone/models/tiny-encoder"},
    "search": {
        "candidates_by_source": {"dense": 59610, "bm25": 1234},
        "model": "tiny-encoder",
        "encoder_fit": make_encoder_fit().to_dict(),
    },
    "features": {},
    "verify": {},
    "mask": {
        "rule": "perc",
        "threshold": 0.95,
        "verdicts": {
            "positive": {"known_positive": 513},
            "negative": {"curated_negative": 12, "kept": 40931},
            "ignored": {"near_duplicate": 1, "perc": 18153},
        },
    },
    "sample": {
        "queries": 334,
        "negatives": 2327,
        "n_requested": 7,
        "fill_rate": 0.8128,
        "n_underfilled": 2,
        "hardness": 0.467,
        "skipped_queries": {"no_positive": 0, "no_negatives": 75},
    },
    "train": {},
    "retrievers": {},
    "evaluate": {},
}
PARAMETERS: dict[str, dict[str, Any]] = {
    "pairs": {"dev_ratio": 0.15, "test_ratio": 0.1},
    "search": {"top_k": 100},
    "mask": {"mask": "window", "rank_window": [4, 60]},
}
TEXTS = {
    "question": "How do I reset it?",
    "positive": "Press the button.",
    "kept": "Opening hours are nine to five.",
    "masked": "Hold the button for ten seconds.",
}


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Artifacts on disk: one train question with a positive, a mined negative and one set aside, and one of test."""

    def made(texts: dict[str, str] = TEXTS, metrics: dict[str, Any] | None = None, at: str = "runs") -> Artifacts:
        artifacts = {}
        for number, stage in enumerate(PIPELINE):
            folder = tmp_path / at / stage.name
            folder.mkdir(parents=True)
            parameters = PARAMETERS.get(stage.name, {})
            manifest = {"key": f"{number}a2b3c4d5e6f", "parameters": parameters, "summary": SUMMARIES[stage.name]}
            artifacts[stage.name] = Artifact(folder, manifest)
        put = {stage: artifact.folder for stage, artifact in artifacts.items()}
        train = texts.get("split", "train")
        queries = [("q1", texts["question"], train, "g1"), ("q2", "not shown", "test", "g2")]
        corpus = [("f", "It is the button."), ("k", texts["kept"]), ("m", texts["masked"]), ("p", texts["positive"])]
        judged = [("q1", "p", 1, 0.8), ("q2", "p", 1, 0.1)]
        verdicts = [
            ("q1", "m", "dense", 1, 0.79, "ignored", "perc", None, 0.76),
            ("q1", "k", "dense", 3, 0.31, "negative", "kept", None, 0.76),
            ("q1", "f", "dense", 2, 0.7, "ignored", "contains_answer", None, 0.76),
            ("q2", "k", "dense", 1, 0.99, "negative", "kept", None, 0.095),
        ]
        for frame, schema, path in (
            (frame_of(queries, QUERIES), QUERIES, put["pairs"] / "queries.parquet"),
            (frame_of(corpus, CORPUS), CORPUS, put["pairs"] / "corpus.parquet"),
            (frame_of(judged, QRELS_SCORED), QRELS_SCORED, put["search"] / "qrels_scored.parquet"),
            (frame_of(verdicts, VERDICTS), VERDICTS, put["mask"] / "verdicts.parquet"),
        ):
            write_table(frame, schema, path)
        line = {"query_id": "q1", "neg": [texts["kept"]], "neg_ids": ["k"]}
        (put["sample"] / "mined.jsonl").write_text(json.dumps(line) + "\n" if train == "train" else "")
        (put["evaluate"] / "metrics.json").write_text(json.dumps(metrics or measured()))
        (put["retrievers"] / "retrievers.json").write_text(json.dumps(measured_retrievers()))
        return artifacts

    return made


def frame_of(rows: list[tuple[Any, ...]], schema: Any) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=schema.names[: len(rows[0])], orient="row")


class Reader(HTMLParser):
    """The tags of a page in order, its attributes, and its text; fails where a tag closes another's."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(" ".join(data.split()))


def test_every_figure_of_the_metrics_is_on_the_page(build: Build) -> None:
    metrics = measured()
    texts = Reader(render_report(build())).texts
    alone = measured_retrievers()
    for rows in (
        *(alone[view][split] for view in ("corpus", "lists") for split in ("train", "dev", "test")),
        metrics["test"],
        metrics["dev"],
        metrics["positives_forced"]["test"],
        metrics["positives_forced"]["dev"],
    ):
        for found in rows.values():
            for value in found.values():
                assert f"{value:.3f}" in texts
    assert texts.count("+0.083") == texts.count("[+0.051, +0.114]") == texts.count("p = 0.002") == 4
    page_text = " ".join(texts)
    assert "103 test queries in 97 independent groups, a sample of 150" in page_text
    assert " ".join(metrics["verdict"]["test"]["reasons"][1:]) in page_text
    assert "79.6% of the positives" in page_text
    assert (
        "on test: BM25 0.410, embedder 0.460, BM25 + embedder 0.510 (0.20 of BM25; +0.050 [+0.010, +0.090])"
        in page_text
    )
    assert "0.85 × the reranker's score + 0.15 × the embedder's" in page_text


def test_the_funnel_and_the_mask_are_those_of_the_summaries(build: Build) -> None:
    texts = Reader(render_report(build())).texts
    page_text = " ".join(texts)
    pairs = "rows in 1,643 empty question −17 too short −3 a document or a question alone −20 rows used as pairs 1,603"
    queries = "merged into an equal query −27 queries 1,576 train 1,211 dev 181 test 184"
    assert f"{pairs} {queries} documents 905 curated negatives 12 positives a query 1.23 at most 5" in page_text
    assert "the id column is not used" in page_text
    assert "of every split: 1,234 by bm25, 59,610 by dense (dense is the encoder tiny-encoder)" in page_text
    verdicts = ("known_positive", "curated_negative", "near_duplicate", "perc", "kept")
    assert [text for text in texts if text in verdicts] == list(verdicts)  # in the order of the mask's precedence
    assert "perc may be a positive by the rule perc ignored 18,153 30.5%" in page_text
    assert "near_duplicate is nearly the same as a positive ignored 1 <0.1%" in page_text
    assert "The rule perc accepts: at most 0.95 of the lowest positive's score" in page_text
    assert "81.3% were found: 2,327 for 334 train queries, of which 2 got fewer" in page_text
    assert (
        "2 got fewer than requested. 75 further queries got none and are not trained on. The mean retriever"
        in page_text
    )
    assert "mean mined negative 0.467" in page_text
    assert "median positive 0.800" in page_text  # of train alone
    assert "negative 1" in page_text  # the candidate of the test question is not counted


def test_an_example_says_why(build: Build) -> None:
    page_text = " ".join(Reader(render_report(build())).texts)
    assert "How do I reset it? q1 Positive 0.800 Press the button. not among the candidates" in page_text
    assert "Mined negatives 0.310 Opening hours are nine to five. rank 3; passed every check" in page_text
    nearest = "may be a positive by the rule perc: score 0.79 is above 0.76"
    assert f"0.790 Hold the button for ten seconds. rank 1; {nearest}" in page_text
    assert "0.700 It is the button. rank 2; contains a known answer of the query" in page_text
    assert "not shown" not in page_text


def test_negatives_of_all_lines_are_shown_and_need_be_no_candidates(build: Build) -> None:
    artifacts = build()
    lines = [
        {"query_id": "q1", "neg_ids": [i], "neg": [t]} for i, t in (("k", TEXTS["kept"]), ("x", "A cow & a calf."))
    ]
    path = artifacts["sample"].folder / "mined.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = render_report(artifacts)
    assert "A cow &amp; a calf." in found
    assert "not among the candidates; drawn from all documents" in found
    assert found.count(TEXTS["kept"]) == 1


def test_keys_and_settings(build: Build) -> None:
    texts = Reader(render_report(build())).texts
    place = texts.index("0a2b3c4d")
    assert texts[place - 1 : place + 2] == ["pairs", "0a2b3c4d", "dev_ratio = 0.15"]  # test_ratio = 0.1 is the default
    assert texts[texts.index("1a2b3c4d") + 1] == "defaults"
    assert 'mask = "window", rank_window = [4, 60]' in texts


def test_the_same_artifacts_give_the_same_bytes(build: Build) -> None:
    one, two = build(), build(at="elsewhere")
    for artifact in two.values():  # as a manifest that was read from disk, which has its keys sorted
        artifact.manifest["summary"] = json.loads(json.dumps(artifact.summary, sort_keys=True))
    assert render_report(one) == render_report(one) == render_report(two)


def test_no_path_of_this_machine_is_on_the_page(build: Build, tmp_path: Path) -> None:
    html = render_report(build())
    assert str(tmp_path) not in html
    assert "someone" not in html
    assert "encoder tiny-encoder" in html


HOSTILE = {
    "question": "</h3><script>alert(1)</script> \" onload='x' <!-- ]]> &lt; \x00\x1b[31m",
    "positive": "</article></main><img src=https://evil.example/a.png onerror=alert(1)><style>*{display:none}</style>",
    "kept": "مرحبا \u202e بالعالم <b> " + "長い" * 300,
    "masked": "w" * 5000 + "<svg onload=alert(1)>",
}


def test_hostile_texts_change_no_markup(build: Build) -> None:
    plain, hostile = render_report(build()), render_report(build(HOSTILE, at="hostile"))
    read = Reader(hostile)
    assert read.tags == Reader(plain).tags
    assert "script" not in read.tags
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert "\x00" not in hostile and "\x1b" not in hostile
    assert "w" * (MAX_TEXT_CHARS + 1) not in hostile
    assert any("</h3><script>alert(1)</script> \" onload='x' <!-- ]]> &lt;" in text for text in read.texts)


def test_nothing_is_loaded_from_anywhere(build: Build) -> None:
    html = render_report(build(HOSTILE))
    read = Reader(html)
    assert not {name for name, _ in read.attributes} & {
        "src",
        "href",
        "srcset",
        "xlink:href",
        "action",
        "data",
        "poster",
    }
    assert not set(read.tags) & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|https?:", style)
    assert "default-src 'none'" in html
    assert len(html.encode()) < 300_000


def test_an_empty_test_split_is_reported_and_dev_is_shown(build: Build) -> None:
    page_text = " ".join(Reader(render_report(build(metrics=measured("dev")))).texts)
    assert "There are no test queries, so nothing is known of the reranker's quality" in page_text
    assert "nDCG@10, dev" in page_text
    assert "its figures are too good" in page_text
    assert "nDCG@10, test" not in page_text


def test_nothing_evaluated_and_nothing_to_train_on(build: Build) -> None:
    page_text = " ".join(Reader(render_report(build(TEXTS | {"split": "dev"}, measured("")))).texts)
    assert "Neither test nor dev holds a query with a positive." in page_text
    assert "median positive" not in page_text
    assert "Candidates of train queries" not in page_text


def test_too_few_groups_are_reported(build: Build) -> None:
    page_text = " ".join(Reader(render_report(build(metrics=measured(low=None, high=None)))).texts)
    assert "There are too few test queries to tell whether the reranker is better" in page_text
    assert "+0.083 too few groups" in page_text


def test_an_encoder_that_does_not_fit_is_reported(build: Build) -> None:
    artifacts = build()
    assert "does not fit" not in render_report(artifacts)
    artifacts["search"].summary["encoder_fit"] = make_encoder_fit(verdict="misfit", reasons=("a <b> why",)).to_dict()
    page = render_report(artifacts)
    assert "The encoder tiny-encoder does not fit these texts (mostly unknown): a &lt;b&gt; why. Try model" in page


def test_a_base_reranker_that_was_not_scored_is_left_out(build: Build) -> None:
    metrics = measured() | {"base_has_new_head": True}
    for split in ("dev", "test"):
        for rows in (metrics[split], metrics["positives_forced"][split], metrics["comparisons"][split]):
            rows.pop("base_reranker", None)
    text = " ".join(Reader(render_report(build(metrics=metrics))).texts)
    assert "base reranker" not in text.lower()
    assert "trained reranker" in text


@pytest.mark.parametrize(
    ("name", "threshold", "says"),
    [
        ("window", None, "the ranks from 5 to 60 (FlagEmbedding"),
        ("abs", 0.7, "a score of at most 0.7 (NV-Retriever TopK-Abs"),
        ("learned", None, "candidates that are unlikely enough to be false negatives for their score (prep)"),
        ("later", 0.02, "candidates that it does not take for positives (threshold 0.02)"),
    ],
)
def test_a_rule_in_words(name: str, threshold: float | None, says: str) -> None:
    manifest = {"summary": {"rule": name, "threshold": threshold}, "parameters": PARAMETERS["mask"]}
    assert describe_mask_rule(Artifact(Path(), manifest)).startswith(says)


def test_a_text_is_cut_at_a_nearby_end_of_a_word() -> None:
    assert shorten(" a \n b ") == "a b"
    assert shorten("x" * MAX_TEXT_CHARS) == "x" * MAX_TEXT_CHARS
    assert shorten("word " * 100) == ("word " * (MAX_TEXT_CHARS // 5)).strip() + "…"
    assert shorten("x" * 999) == "x" * (MAX_TEXT_CHARS - 1) + "…"


def test_ticks_are_round() -> None:
    assert compute_ticks(0.07, 0.93, 5) == [0.2, 0.4, 0.6, 0.8]
    assert compute_ticks(0, 3800, 3) == [0, 2000]
    assert compute_ticks(-0.004, 0.011, 5) == [0.0, 0.005, 0.01]


def test_dots_are_at_their_values() -> None:
    plot = build_dot_plot("m", [Dot("a", 0.5), Dot("b", 0.0, -1.0, 1.0, is_highlighted=True)], 0.5)
    # the axis runs from -1.08 to 1.08
    assert [(dot.x, dot.y, dot.whisker) for dot in plot.dots] == [
        *(("73.148%", 15, ()), ("50%", 45, ("3.704%", "96.296%")))
    ]
    assert plot.reference == "73.148%"
    assert plot.height == 60
    assert plot.description == "m: a 0.500; b 0.000"
    assert len(build_dot_plot("all alike", [Dot("a", 0.5)], 0.5).ticks) > 1


def test_bars_stack_to_their_counts() -> None:
    series = [Series("n", "solid", [1, 3]), Series("i", "light", [1, 0]), Series("none", "dark", [0, 0])]
    chart = build_histogram("h", 0.0, 1.0, series, [Marker("m", 0.25)])
    # 190 pixels for 3, above the axis at 218
    assert chart.bottom == 218
    assert [(bar.css_class, bar.x, bar.y, bar.width, bar.height) for bar in chart.bars] == [
        ("solid", "0%", "154.7", "47%", "63.3"),
        ("solid", "50%", "28.0", "47%", "190.0"),
        ("light", "0%", "91.3", "47%", "63.3"),
    ]
    assert [(marker.x, marker.anchor) for marker in chart.markers] == [("25%", "start")]
    assert chart.legend == [("solid", "n 4"), ("light", "i 1")]


def test_charts_are_drawn_from_their_values(build: Build) -> None:
    read = Reader(render_report(build()))
    assert read.tags.count("circle") == 2 * 5  # two metrics of five systems
    assert read.tags.count("figure") == 3
    assert ("class", "whisker ours") in read.attributes
    labels = [value for name, value in read.attributes if name == "aria-label"]
    assert (
        labels[0]
        == "nDCG@10, test: BM25 0.401; embedder 0.501; base reranker 0.601; trained reranker 0.701; fused 0.801"
    )


def test_excluded_candidates_are_sorted_by_distance_to_the_threshold(build: Build) -> None:
    artifacts = build()
    artifacts["mask"].manifest["summary"] = {**artifacts["mask"].summary, "rule": "learned"}
    rows = [  # by the score, m would come first: 0.2 against a threshold of 0.1
        ("q1", "m", "dense", 1, 0.2, "ignored", "learned", 0.4, 0.1),
        ("q1", "k", "dense", 2, 0.9, "ignored", "learned", 0.12, 0.1),
    ]
    write_table(frame_of(rows, VERDICTS), VERDICTS, artifacts["mask"].folder / "verdicts.parquet")
    (question,) = sample_queries(artifacts)
    assert [row["doc_id"] for row in question.ignored.rows] == ["k", "m"]
    assert question.ignored.rows[0]["explanation"].startswith("may answer: 12.0% likely a false negative, up to 10.0%")

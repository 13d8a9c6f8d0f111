"""The pairs stage on literal tables: the five tables that it writes, and its messages."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.core.context import StageContext, Summary
from stages.core.errors import InputError
from stages.core.schemas import ANSWERS, CORPUS, QRELS, QUERIES, REJECTS, document_text, read_table
from stages.core.text import normalise
from stages.pairs import external_sort
from stages.pairs.split import count_split_changes
from stages.pairs.stage import PairTables, Params, build_pairs, key_extras, run
from tests.fakes import RecordedProgress, text_id

SHARED = Path(__file__).parents[3] / "shared" / "data"


class Result:
    """A run of the stage in a folder: its tables, its summary, what it messages."""

    def __init__(self, folder: Path, **params: Any) -> None:
        self.out = folder / "out"
        self.out.mkdir(parents=True)
        progress = RecordedProgress()
        tools = StageContext(progress, folder / "scratch", folder, folder)
        self.summary: Summary = run(Params(**params), {}, self.out, tools)
        self.messages = "\n".join(progress.messages)
        self.queries = read_table(self.out / "queries.parquet", QUERIES)
        self.corpus = read_table(self.out / "corpus.parquet", CORPUS)
        self.qrels = read_table(self.out / "qrels.parquet", QRELS)
        self.answers = read_table(self.out / "answers.parquet", ANSWERS)
        self.rejects = read_table(self.out / "rejects.parquet", REJECTS)

    def bytes(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.iterdir()}


def table(folder: Path, *lines: str, name: str = "faq.csv") -> str:
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def pairs_of(*rows: tuple[str, str], **params: Any) -> PairTables:
    return build_pairs(pl.DataFrame(list(rows), schema=["question", "text"], orient="row"), Params(**params))


def test_a_table_of_contexts(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "id,question,context,answer,category",
        "2,Who  pays?,The sender pays.,the sender,money",
        "1,When?,It comes on Monday.,Monday,time",
        "3,Which day?,It comes  on Monday.,,time",
    )
    found = Result(tmp_path / "run", tables=[path])
    monday, sender = text_id("It comes on Monday."), text_id("The sender pays.")
    assert found.queries.select("query_id", "query").rows() == [("1", "When?"), ("2", "Who pays?"), ("3", "Which day?")]
    assert sorted(found.corpus.select("doc_id", "text", "title", "category").rows()) == sorted(
        [(monday, "It comes on Monday.", None, "time"), (sender, "The sender pays.", None, "money")]
    )
    assert found.corpus["doc_id"].is_sorted()
    assert found.qrels.rows() == [("1", monday, 1), ("2", sender, 1), ("3", monday, 1)]
    assert found.answers.rows() == [("1", "Monday"), ("2", "the sender")]
    assert len(found.rejects) == 0
    assert found.summary["columns"] == {
        "question": "question",
        "document": "context",
        "answer": "answer",
        "category": "category",
        "id": "id",
    }
    assert "document = 'context'" in found.messages


def test_every_unused_row_is_kept_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "faq.csv"
    long = "x" * 1001
    lines = [
        b"question,text,note",
        b"Who?,He.,",
        b",He.,",
        b"?,He.,",
        b"Who?,,",
        b"Who?,.,",
        b"Same,Same,",
        b"a,b",
        b"Wh\0o?,He.,",
    ]
    path.write_bytes(b"\n".join([*lines, f"Who?,,{long}".encode(), b"caf\xe9,He.,", *[b"Who?,He.,"] * 30]))
    found = Result(tmp_path / "run", tables=[str(path)])
    assert found.rejects.select("source", "row", "reason").sort("row").rows() == [
        ("faq.csv", 2, "no question"),
        ("faq.csv", 3, "question too short"),
        ("faq.csv", 4, "no document"),
        ("faq.csv", 5, "document too short"),
        ("faq.csv", 6, "document is the question"),
        ("faq.csv", 7, "ragged row"),
        ("faq.csv", 8, "NUL byte"),
        ("faq.csv", 9, "no document"),
        ("faq.csv", 10, "not in the encoding"),
    ]
    data = dict(found.rejects.select("row", "data").iter_rows())
    assert json.loads(data[4]) == {"question": "Who?", "text": "", "note": ""}
    assert json.loads(data[8])["question"] == "Wh\0o?"
    assert json.loads(data[9])["note"] == "x" * 1000 + "…"
    assert json.loads(data[10])["question"] == "caf\ufffd"
    assert found.summary["rows_in"] == 40
    assert found.summary["rows_used"] + sum(found.summary["rejected"].values()) == 40
    assert found.summary["rejected"]["no document"] == 2


def test_repeated_questions_and_documents_are_merged() -> None:
    found = build_pairs(
        pl.DataFrame(
            {
                "id": ["b", "a", "c"],
                "question": ["Who?", " Who? ", "When?"],
                "document_id": ["y", "z", "x"],
                "text": ["One.", "Two.", "One. "],
            }
        )
    )
    assert found.queries.select("query_id", "query").rows() == [("a", "Who?"), ("c", "When?")]
    assert found.corpus.select("doc_id", "text").rows() == [("x", "One."), ("z", "Two.")]
    assert found.qrels.rows() == [("a", "x", 1), ("a", "z", 1), ("c", "x", 1)]
    assert (found.summary["merged_queries"], found.summary["merged_documents"]) == (1, 1)
    assert found.summary["positives_per_query"] == {"mean": 1.5, "max": 2}


def test_judgements_and_contradictions(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "question,text,relevance",
        "Who?,yes,2",
        "Who?,no,0",
        "Who?,both,1",
        " Who?,both,0",
        "Who?,odd,high",
        "Never?,no,0",
    )
    found = Result(tmp_path / "run", tables=[path], relevance="relevance")
    ids = {text: text_id(text) for text in ("yes", "no")}
    assert sorted(found.qrels.rows()) == sorted([(text_id("Who?"), ids["yes"], 2), (text_id("Who?"), ids["no"], 0)])
    assert found.rejects.select("row", "reason").sort("row").rows() == [
        (3, "contradictory"),
        (4, "contradictory"),
        (5, "relevance is not a whole number"),
        (6, "no positive document"),
    ]
    assert json.loads(found.rejects.filter(pl.col("row") == 4)["data"][0])["question"] == " Who?"
    assert found.summary["curated_negatives"] == 1
    assert "both" not in found.corpus["text"]


def test_lists_are_several_positives_answers_and_negatives(tmp_path: Path) -> None:
    rows = [{"query": "Who?", "pos": ["One.", "Two."], "neg": ["Three."], "answers": ["1", "2"]}]
    path = table(tmp_path, *map(json.dumps, rows), name="t.jsonl")
    found = Result(tmp_path / "run", tables=[path])
    relevance = dict(found.qrels.select("doc_id", "relevance").iter_rows())
    assert relevance == {text_id("One."): 1, text_id("Two."): 1, text_id("Three."): 0}
    assert found.answers["answer"].to_list() == ["1", "2"]
    quoted = table(tmp_path, "query,pos,neg", '"Who?","[""One."", ""Two.""]","[""Three.""]"')
    assert Result(tmp_path / "second", tables=[quoted]).qrels.equals(found.qrels)


def test_answers_as_documents_leave_no_answers(tmp_path: Path) -> None:
    path = table(tmp_path, "question,context,answer", "Who?,A context.,He did.")
    found = Result(tmp_path / "run", tables=[path], document="answer")
    assert found.corpus["text"].to_list() == ["He did."]
    assert len(found.answers) == 0


def test_an_id_given_twice_belongs_to_the_first(tmp_path: Path) -> None:
    path = table(tmp_path, "id,question,text", "1,Who?,He.", "1,When?,Now.", "1,Who?,She.")
    found = Result(tmp_path / "run", tables=[path])
    assert found.queries["query"].to_list() == ["Who?"]
    assert found.rejects.select("row", "reason").rows() == [(2, "id of another question")]
    assert sorted(found.corpus["text"]) == ["He.", "She."]


def test_a_recognised_id_that_repeats_throughout_is_no_id(tmp_path: Path) -> None:
    path = table(tmp_path, "uuid,question,text", *[f"page {n // 10},Question {n}?,Text {n}." for n in range(20)])
    found = Result(tmp_path / "run", tables=[path])
    assert set(found.queries["query_id"]) == {text_id(f"Question {n}?") for n in range(20)}
    assert "'uuid' repeats for different questions" in found.messages
    named = Result(tmp_path / "named", tables=[path], id="uuid")
    assert named.queries["query_id"].to_list() == ["page 0", "page 1"]
    assert named.summary["rejected"] == {"id of another question": 18}


def test_documents_are_cut_and_the_answer_says_which_part(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "question,document_id,text,answer",
        "Which?,long,one two three four five,FOUR",
        "What?,long,one two three four five,nine",
        "Who?,short,one two,",
    )
    found = Result(tmp_path / "run", tables=[path], chunk_words=3, chunk_overlap=1, document="text")
    assert found.corpus.select("doc_id", "text").rows() == [
        ("long#0", "one two three"),
        ("long#1", "three four five"),
        ("short", "one two"),
    ]
    which, what, who = (text_id(text) for text in ("Which?", "What?", "Who?"))
    assert sorted(found.qrels.rows()) == sorted(
        [(which, "long#1", 1), (what, "long#0", 1), (what, "long#1", 1), (who, "short", 1)]
    )
    assert "1 positives: no chunk holds an answer" in found.messages
    assert found.summary["chunks"] == 3


def test_a_corpus_adds_documents_and_gives_ids(tmp_path: Path) -> None:
    path = table(tmp_path, "question,text", "Who?,He did.")
    more = table(
        tmp_path, "id,title,text", "d1,T,He did.", "d2,U,Nobody.", "d2,U,Other.", "d3,Only a title,", name="c.csv"
    )
    found = Result(tmp_path / "run", tables=[path], corpus=[more])
    assert found.corpus.select("doc_id", "text", "title").rows() == [
        ("d1", "He did.", "T"),
        ("d2", "Nobody.", "U"),
        ("d3", "Only a title", None),
    ]
    assert found.qrels["doc_id"].to_list() == ["d1"]
    assert found.rejects.select("source", "row", "reason").rows() == [("c.csv", 3, "id of another document")]
    assert found.summary["rows_in"] == 5 == found.summary["rows_used"] + found.summary["standalone_rows"] + 1


def test_one_text_under_two_titles_is_two_documents(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d-{title.lower()}", "title": title, "text": "A city."} for title in ("Paris", "London")]
    table(folder, *map(json.dumps, documents), name="corpus.jsonl")
    questions = [{"_id": "q1", "text": "Capital of France?"}, {"_id": "q2", "text": "Capital of Britain?"}]
    table(folder, *map(json.dumps, questions), name="queries.jsonl")
    lines = ["query-id\tcorpus-id\tscore", "q1\td-paris\t1", "q1\td-london\t0", "q2\td-london\t1"]
    table(folder / "qrels", *lines, name="train.tsv")
    found = Result(tmp_path / "run", beir=str(folder), dev_ratio=0)
    assert found.qrels.rows() == [("q1", "d-london", 0), ("q1", "d-paris", 1), ("q2", "d-london", 1)]
    assert found.corpus.select("doc_id", "title").rows() == [("d-london", "London"), ("d-paris", "Paris")]


def test_a_text_without_title_finds_its_title_in_the_corpus(tmp_path: Path) -> None:
    lines = ["question,article_id,article,category", "Who?,k2,A city.,b", "When?,k1,A city.,a", "Where?,k3,A town.,c"]
    path = table(tmp_path, *lines)
    more = table(tmp_path, "id,title,text", "k1,Paris,A city.", "k2,London,A city.", "k3,Ghent,A town.", name="c.csv")
    found = Result(tmp_path / "run", tables=[path], corpus=[more], document="article", document_id="article_id")
    named = found.qrels.join(found.queries, on="query_id").select("query", "doc_id").sort("query")
    assert named.rows() == [("When?", "k1"), ("Where?", "k3"), ("Who?", "k2")]
    assert found.corpus.select("doc_id", "title", "text", "category").rows() == [
        ("k1", "Paris", "A city.", None),
        ("k2", "London", "A city.", None),
        ("k3", "Ghent", "A town.", "c"),
    ]
    assert found.rejects.is_empty()


def test_ids_without_ids_are_hashes_of_title_and_text() -> None:
    frame = pl.DataFrame({"question": ["A?", "B?", "C?"], "title": ["Paris", "London", None], "text": ["T."] * 3})
    found = build_pairs(frame)
    assert dict(found.corpus.select("doc_id", "title").iter_rows()) == {
        text_id("Paris T."): "Paris",
        text_id("London T."): "London",
        text_id("T."): None,
    }
    assert found.qrels["doc_id"].n_unique() == 3
    one = build_pairs(frame.filter(pl.col("title").is_null() | (pl.col("title") == "Paris")))
    assert one.corpus.select("doc_id", "title").rows() == [(text_id("Paris T."), "Paris")]
    assert one.summary["merged_documents"] == 1


def test_texts_that_models_read_as_equal_are_one_document() -> None:
    rows = {"question": ["A?", "B?"], "title": ["Paris", None], "text": ["is a city.", "Paris is a city."]}
    found = build_pairs(pl.DataFrame(rows | {"answer": ["city", "city"]}), Params(chunk_words=2, chunk_overlap=0))
    whole = text_id("Paris is a city.")
    assert found.corpus.select("doc_id", "title", "text").rows() == [
        (f"{whole}#0", "Paris", "is a"),
        (f"{whole}#1", "Paris", "city."),
    ]
    assert len(found.qrels) == 4  # which window holds the answer was told from two cuts, so all count


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(*(st.sampled_from(part) for part in (["A", "B", None], ["x.", "A x.", "y."], ["1", "2", None]))),
        min_size=1,
        max_size=12,
    )
)
def test_every_question_keeps_a_document_with_its_text_after_merges(rows: list[tuple[Any, ...]]) -> None:
    titles, texts, ids = zip(*rows, strict=True)
    columns = {"title": titles, "text": texts, "document_id": ids, "question": [f"q{i}?" for i in range(len(rows))]}
    frame = pl.DataFrame(columns, schema_overrides={"title": pl.String, "document_id": pl.String})
    found = build_pairs(frame)
    known = {doc_id: (title, text) for doc_id, text, title in found.corpus.select("doc_id", "text", "title").rows()}
    assert len(set(known.values())) == len(known)
    asked = dict(found.queries.select("query_id", "query").iter_rows())
    assert len(asked) + len(found.rejects) == len(rows)
    for query_id, doc_id, _ in found.qrels.iter_rows():
        title, text, _ = rows[int(asked[query_id][1:-1])]
        read = f"{known[doc_id][0]} {known[doc_id][1]}" if known[doc_id][0] else known[doc_id][1]
        assert known[doc_id][1] == text or read == (f"{title} {text}" if title else text)


DIRT = st.lists(
    st.sampled_from([*"か한하答 \t\n", "\u00a0", "\u3000", "\u0301", "\u3099", "e\u0301", "word", "two"]), max_size=12
).map("".join)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(DIRT, DIRT), max_size=6), st.sampled_from([0, 1, 3]))
def test_documents_are_normalised_as_models_read_them(rows: list[tuple[str, str]], words: int) -> None:
    """So equal texts are equal byte for byte: whatever compares documents later relies on it."""
    titles, texts = zip(*rows, ("A title", "A text that is long enough."), strict=True)
    table = {"question": [f"q{i}?" for i in range(len(texts))], "title": titles, "text": texts}
    found = build_pairs(pl.DataFrame(table), Params(chunk_words=words))
    for text in found.corpus.select(document_text(found.corpus.columns)).to_series():
        assert text == normalise(text)


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": "d1", "title": "T", "text": "One."}, {"_id": "d2", "title": "", "text": "Two."}]
    questions = [{"_id": "q1", "text": "Who?"}, {"_id": "q2", "text": "When?"}, {"_id": "q3", "text": "Unjudged?"}]
    table(folder, *map(json.dumps, documents), name="corpus.jsonl")
    table(folder, *map(json.dumps, questions), name="queries.jsonl")
    table(folder / "qrels", "query-id\tcorpus-id\tscore", "q1\td1\t2", "q1\td2\t0", "q9\td1\t1", name="train.tsv")
    table(folder / "qrels", "query-id\tcorpus-id\tscore", "q2\td2\t1", "q2\td9\t1", name="test.tsv")
    return folder


def test_a_beir_folder(beir: Path, tmp_path: Path) -> None:
    found = Result(tmp_path / "run", beir=str(beir), dev_ratio=0)
    assert found.queries.select("query_id", "split").rows() == [("q1", "train"), ("q2", "test")]
    assert found.qrels.rows() == [("q1", "d1", 2), ("q1", "d2", 0), ("q2", "d2", 1)]
    assert found.corpus.select("doc_id", "title").rows() == [("d1", "T"), ("d2", None)]
    assert found.rejects.select("source", "row", "reason").sort("source", "row").rows() == [
        ("queries.jsonl", 3, "no positive document"),
        ("test.tsv", 2, "unknown document id"),
        ("train.tsv", 3, "unknown question id"),
    ]
    assert found.summary["rows_in"] == 10 == found.summary["rows_used"] + found.summary["standalone_rows"] + 3
    assert list(key_extras(Params(beir=str(beir)))) == [
        *("beir:corpus.jsonl", "beir:queries.jsonl", "beir:qrels/test.tsv", "beir:qrels/train.tsv")
    ]
    (beir / "qrels" / "dev.tsv").mkdir()
    with pytest.raises(InputError, match=r"dev\.tsv is a folder"):
        key_extras(Params(beir=str(beir)))
    (beir / "qrels" / "dev.tsv").rmdir()
    (beir / "qrels" / "train.tsv").write_text("q1\td1\t1\n")
    with pytest.raises(InputError, match=r"train\.tsv: there is no column 'query-id'"):
        Result(tmp_path / "again", beir=str(beir))


def test_own_splits(tmp_path: Path) -> None:
    lines = ["question,text,split", "A?,one,train", "B?,two,VAL", "C?,three,test", "D?,four,", "C?,five,train"]
    found = Result(tmp_path / "run", tables=[table(tmp_path, *lines)])
    splits = dict(found.queries.select("query", "split").iter_rows())
    assert splits == {"A?": "train", "B?": "dev", "C?": "test", "D?": "train"}
    assert "1 questions (restated ones included) are in several of the table's splits" in found.messages
    wrong = table(tmp_path, *lines, "E?,six,north")
    with pytest.raises(InputError, match=r"faq\.csv, row 6, column 'split': 'north' is not a split.*train"):
        Result(tmp_path / "wrong", tables=[wrong], split="split")


def test_a_restated_question_is_not_trained_on_when_tested(tmp_path: Path) -> None:
    lines = ["question,text,split", "Who pays?,one,train", "who PAYS,two,test", "When?,three,dev", "when,four,train"]
    found = Result(tmp_path / "run", tables=[table(tmp_path, *lines, "Where?,five,train")])
    splits = dict(found.queries.select("query", "split").iter_rows())
    assert splits == {"Who pays?": "test", "who PAYS": "test", "When?": "dev", "when": "dev", "Where?": "train"}
    assert "4 questions (restated ones included) are in several" in found.messages
    assert found.summary["paraphrases_across_splits"] == 0


def test_groups_stay_together(tmp_path: Path) -> None:
    lines = [f"Question {number}?,Text {number}.,{'abcdefghij'[number % 10]}" for number in range(60)]
    found = Result(
        tmp_path / "run", tables=[table(tmp_path, "question,text,group", *lines)], dev_ratio=0.3, test_ratio=0.3
    )
    assert found.queries.group_by("group").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 10
    assert set(found.queries["group"]) == set("abcdefghij")
    with pytest.raises(InputError, match="group column"):
        pairs_of(("Who?", "He."), split_by="group")


def test_the_doors_of_pandas_and_polars_are_the_same(tmp_path: Path) -> None:
    rows = {"question": ["Who?", "When?", None], "text": ["He did.", "Now.", "x"], "n": [1, None, 3]}
    one, two = build_pairs(pd.DataFrame(rows)), build_pairs(pl.DataFrame(rows))
    assert one.summary == two.summary
    for name in ("queries", "corpus", "qrels", "answers", "rejects"):
        assert getattr(one, name).equals(getattr(two, name))
    assert len(one.rejects) == 1


def test_the_same_table_gives_the_same_bytes_in_or_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"q{number},Question {number % 90}?,Text {number % 70}.,Answer {number}" for number in range(200)]
    path = table(tmp_path, "id,question,context,answer", *rows)
    first = Result(tmp_path / "a", tables=[path])
    assert Result(tmp_path / "b", tables=[path]).bytes() == first.bytes()
    monkeypatch.setattr(external_sort, "MEMORY_BUDGET_BYTES", 2000)
    monkeypatch.setattr(external_sort.SpillBuffer.__init__, "__defaults__", (2000,))
    small = Result(tmp_path / "c", tables=[path])
    for name in ("queries", "corpus", "qrels", "answers"):
        assert getattr(small, name).equals(getattr(first, name))
    assert not (tmp_path / "c" / "scratch" / "pairs").exists()


ROWS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=25)


def numbered(rows: list[tuple[int, int]]) -> list[tuple[str, str]]:
    return [(f"Question {q}?", f"Document {d}.") for q, d in rows]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows: list[tuple[int, int]], draw: Any) -> None:
    shuffled = list(rows)
    draw.shuffle(shuffled)
    one, two = (
        pairs_of(*numbered(rows), dev_ratio=0.3, test_ratio=0.3),
        pairs_of(*numbered(shuffled), dev_ratio=0.3, test_ratio=0.3),
    )
    for name in ("queries", "corpus", "qrels"):
        assert getattr(one, name).equals(getattr(two, name))


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS, ROWS)
def test_new_questions_do_not_change_the_split_of_others(
    rows: list[tuple[int, int]], more: list[tuple[int, int]]
) -> None:
    known = {d for _, d in rows}
    added = [(q + 100, d if d in known else d + 100) for q, d in more]
    linked: dict[int, set[int]] = {}
    for q, d in added:
        linked.setdefault(q, set()).add(d)
    added = [(q, d) for q, d in added if len(linked[q]) == 1]
    wide = [(1000 + number, 1000 + number) for number in range(60)]  # so that no component is a fifth of all
    before = pairs_of(*numbered(rows + wide), dev_ratio=0.3, test_ratio=0.3)
    after = pairs_of(*numbered(rows + wide + added), dev_ratio=0.3, test_ratio=0.3)
    giant = any("tied together" in note for note in before.summary["notes"] + after.summary["notes"])
    assert giant or count_split_changes(before.queries, after.queries) == 0


def test_no_question_is_in_two_splits(tmp_path: Path) -> None:
    rows = [(f"Where is {n}?", f"Place {n}.") for n in range(80)] + [(f"where IS {n}", f"Spot {n}.") for n in range(80)]
    found = pairs_of(*rows, dev_ratio=0.3, test_ratio=0.3)
    assert found.summary["paraphrases_across_splits"] == found.summary["documents_across_splits"] == 0
    assert set(found.queries["split"]) == {"train", "dev", "test"}


def test_too_few_questions_to_split_are_logged() -> None:
    notes = pairs_of(("Who?", "He.")).summary["notes"]
    assert any("no question falls into" in note for note in notes)


def test_nothing_usable_is_an_input_error(tmp_path: Path) -> None:
    path = table(tmp_path, "question,answer", "Who?,", "When?,")
    with pytest.raises(InputError, match=r"faq\.csv: none of 2 rows is usable: no document \(2\)"):
        Result(tmp_path / "run", tables=[path])
    with pytest.raises(InputError, match="column names but no rows"):
        Result(tmp_path / "second", tables=[table(tmp_path, "question,answer")])
    with pytest.raises(InputError, match="there is no input"):
        key_extras(Params())


def test_identity_is_names_and_contents(tmp_path: Path) -> None:
    one, two = table(tmp_path, "a"), table(tmp_path, "b", name="b.csv")
    found = key_extras(Params(tables=[one, two], corpus=[two]))
    assert list(found) == ["table:b.csv", "table:faq.csv", "corpus:b.csv"]
    assert found == key_extras(Params(tables=[two, one], corpus=[two]))
    assert found["table:b.csv"] == found["corpus:b.csv"] != found["table:faq.csv"]


@pytest.mark.parametrize(
    "params, message",
    [
        ({"dev_ratio": 0.5, "test_ratio": 0.5}, "must be below 1"),
        ({"chunk_words": 10, "chunk_overlap": 10}, "must be below chunk_words"),
        ({"sql": "SELECT 1"}, "sql and database go together"),
        ({"delimiter": "ab"}, "one character"),
        ({"dev_ratio": -0.1}, "greater than or equal to 0"),
    ],
)
def test_parameters_are_checked(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Params(**params)


def test_one_table_needs_no_list_and_empty_texts_are_unset() -> None:
    params = Params(tables="faq.csv", corpus="more.csv")
    assert (params.tables, params.corpus) == (("faq.csv",), ("more.csv",))
    empty = ("sql", "database", "beir", "value_separator", "sheet", "encoding", "delimiter", "tables", "corpus")
    assert Params(**dict.fromkeys(empty, "")) == Params()
    assert Params(answer="").answer == ""
    assert (Params.model_fields["database"].description or "").startswith("Database for sql: sqlite:///")


def test_a_name_that_is_no_utf8_goes_through(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.csv")
    try:
        path.write_text("question,text\nWho?,He.\n,She.\n")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert list(key_extras(Params(tables=(str(path),)))) == ["table:caf\\xe9.csv"]
    found = Result(tmp_path / "run", tables=[str(path)])
    assert found.rejects["source"].to_list() == ["caf\\xe9.csv"]
    json.dumps(found.summary, ensure_ascii=False).encode()
    found.messages.encode()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real tables are not at ../shared/data")
@pytest.mark.parametrize(
    "path, params, rows",
    [
        ("masteringrag/question_answer.xlsx", {}, 390),
        ("masteringrag/question_answer.xlsx", {"document": "answer"}, 390),
        ("covid_faq/qa_table.csv", {}, 896),
        ("stackfaq/qa_table.csv", {"document": "answer"}, 1374),
        ("cmrc2018/qa_table.jsonl", {}, 4221),
    ],
)
def test_real_tables_are_accounted_for_row_by_row(tmp_path: Path, path: str, params: dict[str, Any], rows: int) -> None:
    found = Result(tmp_path / "run", tables=[str(SHARED / path)], **params)
    assert found.summary["rows_in"] == rows == found.summary["rows_used"] + len(found.rejects)
    assert min(found.summary["splits"].values()) > 0
    assert set(found.qrels["query_id"]) == set(found.queries["query_id"])
    assert set(found.qrels["doc_id"]) <= set(found.corpus["doc_id"])

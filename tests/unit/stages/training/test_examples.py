"""Training groups from mined.jsonl; the samples of an epoch depend only on (seed, epoch, query)."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import InputError
from stages.training.examples import MinedQuery, build_epoch_groups, read_mined_queries

MINED = [MinedQuery(f"q{i}", f"question {i}", ("p1", "p2", "p3"), tuple(f"n{j}" for j in range(8))) for i in range(20)]


def line(query_id: str, pos: list[str], neg: list[str]) -> str:
    row: dict[str, Any] = {"query_id": query_id, "query": f"about {query_id}"}
    row |= {"pos": [f"text of {x}" for x in pos], "neg": [f"text of {x}" for x in neg], "pos_ids": pos, "neg_ids": neg}
    return json.dumps(row | {"pos_scores": [0.5] * len(pos), "neg_scores": [0.1] * len(neg)}, ensure_ascii=False)


def write(folder: Path, *lines: str) -> Path:
    path = folder / "mined.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_reads_ids_and_texts_and_counts_unusable_queries(tmp_path: Path) -> None:
    path = write(tmp_path, line("b", ["d1"], ["d2", "d3"]), line("a", ["d3"], ["d1"]), line("c", ["d1"], []))
    mined, texts, unusable = read_mined_queries(path, 0, 0)
    assert mined == [MinedQuery("a", "about a", ("d3",), ("d1",)), MinedQuery("b", "about b", ("d1",), ("d2", "d3"))]
    assert texts == {"d1": "text of d1", "d2": "text of d2", "d3": "text of d3"}
    assert unusable == 1


def test_several_lines_of_a_query_are_one_query(tmp_path: Path) -> None:
    lines = [line("a", ["d1"], ["d2", "d3"]), line("a", ["d1"], ["d3", "d4"]), line("a", ["d1"], [])]
    others = [line("b", ["d1"], ["d2"]), line("c", ["d1"], ["d2"]), line("d", ["d1"], [])]
    mined, texts, unusable = read_mined_queries(write(tmp_path, *lines, *others), 0, 0)
    assert mined[0] == MinedQuery("a", "about a", ("d1",), ("d2", "d3", "d4"))
    assert [query.query_id for query in mined] == ["a", "b", "c"]
    assert texts.keys() == {"d1", "d2", "d3", "d4"}
    assert unusable == 1
    # an epoch sees the query once, so that all epochs are of one length
    groups = build_epoch_groups(mined, 0, 1, 3, 0)
    assert sorted(group.query_id for group in groups) == ["a", "b", "c"]
    (group,) = (group for group in groups if group.query_id == "a")
    assert sorted(group.documents[1:]) == ["d2", "d3", "d4"]
    # a sample counts queries, not lines
    assert len(read_mined_queries(tmp_path / "mined.jsonl", 2, 0)[0]) == 2


def test_lines_without_scores_are_read(tmp_path: Path) -> None:
    bare = [{k: v for k, v in json.loads(line(q, ["d1"], ["d2"])).items() if "scores" not in k} for q in "ab"]
    assert len(read_mined_queries(write(tmp_path, *map(json.dumps, bare)), 0, 0)[0]) == 2


def test_a_line_separator_within_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, line("a\u2028b", ["d1"], ["d2\x85"]), line("c", ["d1"], ["d2"]))
    assert [query.query_id for query in read_mined_queries(path, 0, 0)[0]] == ["a\u2028b", "c"]


def test_fewer_than_two_queries_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, line("a", ["d1"], ["d2"]), line("b", ["d1"], []), line("c", ["d1"], []))
    with pytest.raises(InputError, match=r"holds 1 queries .*\(2 without\), and at least 2 are needed"):
        read_mined_queries(path, 0, 0)


def test_a_sample_keeps_its_queries_when_others_come(tmp_path: Path) -> None:
    lines = [line(f"q{i}", ["d1"], [f"n{i}"]) for i in range(40)]
    few, texts, _ = read_mined_queries(write(tmp_path, *lines[:20]), 10, 7)
    more, _, _ = read_mined_queries(write(tmp_path, *reversed(lines)), 20, 7)
    other, _, _ = read_mined_queries(write(tmp_path, *lines[:20]), 10, 8)
    assert len(few) == 10
    assert texts.keys() == {"d1"} | {query.negatives[0] for query in few}
    # of the 20 first ones, whoever is drawn into the larger sample is among the first of the smaller one or as likely
    first = {f"q{i}" for i in range(20)}
    kept = {query.query_id for query in more} & first
    smaller = {query.query_id for query in few}
    assert kept <= smaller or smaller <= kept
    assert smaller != {query.query_id for query in other}


def test_groups_hold_one_positive_and_distinct_negatives() -> None:
    groups = build_epoch_groups(MINED, 0, n_positives=2, n_negatives=5, seed=1)
    assert len(groups) == 40
    for query in MINED:
        mine = [group for group in groups if group.query_id == query.query_id]
        assert len({group.documents[0] for group in mine}) == 2
        for group in mine:
            assert group.documents[0] in query.positives
            assert len(set(group.documents[1:])) == 5
            assert set(group.documents[1:]) <= set(query.negatives)


def test_a_query_with_fewer_gives_all_it_has() -> None:
    groups = build_epoch_groups([MinedQuery("q", "?", ("p",), ("n1", "n2"))], 0, n_positives=3, n_negatives=7, seed=0)
    assert [(group.documents[0], set(group.documents[1:])) for group in groups] == [("p", {"n1", "n2"})]


def test_a_negative_that_is_listed_twice_is_drawn_once() -> None:
    groups = build_epoch_groups(
        [MinedQuery("q", "?", ("p",), ("n1", "n1", "n2"))], 0, n_positives=1, n_negatives=7, seed=0
    )
    assert sorted(groups[0].documents[1:]) == ["n1", "n2"]


def test_an_epoch_is_a_pure_function_of_seed_and_epoch() -> None:
    def draw(epoch: int, seed: int) -> list[object]:
        return list(build_epoch_groups(MINED, epoch, n_positives=1, n_negatives=4, seed=seed))

    assert draw(0, 1) == draw(0, 1)
    assert draw(0, 1) != draw(1, 1)
    assert draw(0, 1) != draw(0, 2)
    assert [group.query_id for group in build_epoch_groups(MINED, 0, 1, 4, 1)] != [
        group.query_id for group in build_epoch_groups(MINED, 1, 1, 4, 1)
    ]


def test_the_sample_of_a_query_does_not_depend_on_other_queries() -> None:
    alone = build_epoch_groups(MINED[3:4], 2, n_positives=2, n_negatives=4, seed=5)
    among = [group for group in build_epoch_groups(list(reversed(MINED)), 2, 2, 4, 5) if group.query_id == "q3"]
    assert alone == among


def test_one_negative_more_changes_one_place_at_most() -> None:
    before = build_epoch_groups(MINED, 0, n_positives=1, n_negatives=4, seed=3)
    larger = [MinedQuery(q.query_id, q.query, q.positives, (*q.negatives, "n8")) for q in MINED]
    after = {group.query_id: group for group in build_epoch_groups(larger, 0, 1, 4, 3)}
    changed = [len(set(group.documents[1:]) - set(after[group.query_id].documents[1:])) for group in before]
    assert set(changed) == {0, 1}


def test_all_positives_are_met_over_the_epochs() -> None:
    met = {group.documents[0] for epoch in range(12) for group in build_epoch_groups(MINED[:1], epoch, 1, 2, 0)}
    assert met == {"p1", "p2", "p3"}


def test_weights_come_with_their_documents(tmp_path: Path) -> None:
    path = tmp_path / "mined.jsonl"
    rows = [
        {"query_id": "a", "query": "?", "pos": ["p"], "neg": ["x", "y"], "pos_ids": ["p"], "neg_ids": ["x", "y"],
         "pos_weights": [0.5], "neg_weights": [0.25, 1.0]},
        {"query_id": "b", "query": "!", "pos": ["p"], "neg": ["x"], "pos_ids": ["p"], "neg_ids": ["x"],
         "pos_weights": [1.0], "neg_weights": [1.0]},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mined, _, _ = read_mined_queries(path, 0, 0)
    assert [query.weights for query in mined] == [{"p": 0.5, "x": 0.25}, {}]
    groups = {group.query_id: group for group in build_epoch_groups(mined, 0, 1, 2, 0)}
    weight_by_document = dict(zip(groups["a"].documents, groups["a"].weights, strict=True))
    assert weight_by_document == {"p": 0.5, "x": 0.25, "y": 1.0}
    assert (groups["b"].weights, groups["b"].effective_weights) == ((), (1.0, 1.0))

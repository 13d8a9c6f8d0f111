"""The first lesson's groups: how many, which documents, and what they are to be scored like."""

from pathlib import Path

import polars as pl
import pytest

from stages.core.schemas import CANDIDATES, write_table
from stages.training.distillation import (
    N_TOP_CANDIDATES,
    build_distillation_groups,
    sample_ranks,
    scale_scores_to_labels,
)
from stages.training.examples import MinedQuery, TrainingGroup, build_epoch_groups


def write(folder: Path, scores: dict[str, list[float]]) -> Path:
    """Candidates d1, d2, ... of each query with these scores, best first, and a lexical one that is to be left out."""
    rows = [(q, f"d{r}", "dense", r, s) for q, found in scores.items() for r, s in enumerate(found, 1)]
    rows += [(q, "other", "bm25", 1, 99.0) for q in scores]
    frame = pl.DataFrame(rows, schema=["query_id", "doc_id", "source", "rank", "score"], orient="row")
    write_table(frame, CANDIDATES, folder / "candidates.parquet")
    return folder / "candidates.parquet"


def mined(*query_ids: str, positives: int = 1) -> list[MinedQuery]:
    return [MinedQuery(q, "?", tuple(f"p{i}" for i in range(positives)), ("n",)) for q in query_ids]


def test_labels_stretch_the_scores_of_all_candidates_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path, {"q": [0.75, 0.5, 0.375, 0.25], "twice the scale": [15.0, 10.0, 7.5, 5.0]})
    groups = build_distillation_groups(path, mined("q", "twice the scale"), 1, n_positives=1, group_size=4, seed=0)[0]
    for group in groups:
        assert dict(zip(group.documents, group.labels, strict=True)) == {"d1": 12.0, "d2": 6.0, "d3": 3.0, "d4": 0.0}


def test_scores_all_alike_are_no_order(tmp_path: Path) -> None:
    ((group,),) = build_distillation_groups(
        write(tmp_path, {"q": [0.5, 0.5]}), mined("q"), 1, n_positives=1, group_size=5, seed=0
    )
    assert sorted(group.documents) == ["d1", "d2"]
    assert group.labels == (0.0, 0.0)


def test_scores_that_differ_by_rounding_are_alike() -> None:
    assert scale_scores_to_labels([0.50000006, 0.5]) == [0.0, 0.0]
    assert scale_scores_to_labels([-0.5, -0.75, -1.0]) == [12.0, 6.0, 0.0]


def test_a_large_group_is_filled_from_the_rest_and_a_small_list_is_taken_whole() -> None:
    assert len(sample_ranks(200, 64, 0, "x")) == 64
    assert sample_ranks(5, 64, 0, "x") == [0, 1, 2, 3, 4]


def test_half_of_the_documents_come_from_the_head_and_no_epoch_is_like_another(tmp_path: Path) -> None:
    path = write(tmp_path, {f"q{i}": [1 / r for r in range(1, 201)] for i in range(20)})
    first, second = build_distillation_groups(
        path, mined(*(f"q{i}" for i in range(20))), 2, n_positives=1, group_size=8, seed=3
    )
    for group in (*first, *second):
        ranks = [int(doc_id[1:]) for doc_id in group.documents]
        assert len(set(ranks)) == 8
        assert sum(rank <= N_TOP_CANDIDATES for rank in ranks) == 4
        assert ranks == sorted(ranks)
        assert list(group.labels) == sorted(group.labels, reverse=True)
    assert {g.query_id: g.documents for g in first} != {g.query_id: g.documents for g in second}
    assert [g.query_id for g in first] != [g.query_id for g in second]


@pytest.mark.parametrize("positives", [1, 2, 5])
def test_there_are_as_many_groups_as_in_an_epoch_of_judgements(tmp_path: Path, positives: int) -> None:
    queries = mined("a", positives=3) + mined("b", positives=1)
    path = write(tmp_path, {q: [1 / r for r in range(1, 60)] for q in ("a", "b")})
    (found,) = build_distillation_groups(path, queries, 1, positives, group_size=4, seed=0)
    assert len(found) == len(build_epoch_groups(queries, 0, positives, 4, 0))


def test_a_query_keeps_its_groups_when_others_come(tmp_path: Path) -> None:
    scores = [1 / r for r in range(1, 60)]
    (alone,) = build_distillation_groups(write(tmp_path, {"a": scores}), mined("a"), 1, 1, 6, 5)
    path = write(tmp_path, {"b": scores, "a": scores, "0": scores[:9]})
    (more,) = build_distillation_groups(path, mined("0", "a", "b"), 1, 1, 6, 5)
    assert alone == [group for group in more if group.query_id == "a"]
    assert build_distillation_groups(path, mined("b", "0", "a"), 1, 1, 6, 5) == [more]


def test_without_epochs_nothing_is_read(tmp_path: Path) -> None:
    nothing: list[list[TrainingGroup]] = build_distillation_groups(tmp_path / "no.parquet", mined("a"), 0, 1, 6, 5)
    assert nothing == []

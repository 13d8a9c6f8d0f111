"""The budget by hand, and against every choice there is."""

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.mining.params import RiskPolicy
from stages.mining.risk_budget import (
    LAMBDAS,
    PaddedCandidates,
    compute_risk_limits,
    estimate_score_scale,
    evaluate_lambdas,
    keep_pareto_candidates,
    pad_by_query,
    pad_eligible_candidates,
    select_at_lambda,
    solve_lambda,
)


def lists(
    scores: list[list[float]], ps: list[list[float]], room: int, shut: tuple[tuple[int, int], ...] = ()
) -> PaddedCandidates:
    score, p = np.array(scores, np.float32), np.array(ps, np.float32)
    open_ = np.ones(score.shape, np.bool_)
    for place in shut:
        open_[place] = False
    return PaddedCandidates(score, p, open_, np.full(len(score), room))


def test_a_price_by_hand() -> None:
    # values at price 1: 0.9 - 0.5 = 0.4, 0.8 - 0.1 = 0.7, 0.5, 0.3
    one = lists([[0.9, 0.8, 0.5, 0.3]], [[0.5, 0.1, 0.0, 0.0]], room=2)
    assert select_at_lambda(one, 1.0).tolist() == [[False, True, True, False]]
    assert select_at_lambda(one, 0.0).tolist() == [[True, True, False, False]]
    # what is shut is not taken, and fewer than the room are kept as they are
    assert select_at_lambda(lists([[0.9, 0.8]], [[0, 0]], 2, shut=((0, 0),)), 0.0).tolist() == [[False, True]]


ROWS = st.integers(1, 6).flatmap(
    lambda width: st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4), st.booleans()), min_size=width, max_size=width),
            st.integers(0, 4),
        ),
        max_size=6,
    )
)


@given(ROWS, st.sampled_from([0.0, 0.25, 1.0, 1e4]))
def test_it_chooses_as_sorting_does(rows: list[tuple[list[tuple[int, int, bool]], int]], price: float) -> None:
    wide = len(rows[0][0]) if rows else 1
    cells = np.array([cells for cells, _ in rows], np.float64).reshape(len(rows), wide, 3)
    table = PaddedCandidates(
        (cells[:, :, 0] / 4).astype(np.float32),
        (cells[:, :, 1] / 4).astype(np.float32),
        cells[:, :, 2] > 0,
        np.array([room for _, room in rows], np.int64),
    )
    expected = np.zeros(table.eligible.shape, np.bool_)
    for query, room in enumerate(table.quota):
        value = table.score[query].astype(np.float64) - price * table.p[query]
        there = [place for place in range(wide) if table.eligible[query, place]]
        expected[query, sorted(there, key=lambda place: (-value[place], place))[:room]] = True
    assert select_at_lambda(table, price).tolist() == expected.tolist()


@given(ROWS, st.sampled_from(LAMBDAS.tolist()))
def test_the_contenders_are_enough_at_any_price(
    rows: list[tuple[list[tuple[int, int, bool]], int]], price: float
) -> None:
    """Each question's candidates best first; what is chosen of them is the same, in the same order."""
    wide = len(rows[0][0]) if rows else 1
    cells = np.array([sorted(cells, reverse=True) for cells, _ in rows], np.float64).reshape(len(rows), wide, 3)
    table = PaddedCandidates(
        (cells[:, :, 0] / 4).astype(np.float32),
        (cells[:, :, 1] / 4).astype(np.float32),
        cells[:, :, 2] > 0,
        np.array([room for _, room in rows], np.int64),
    )
    fewer = keep_pareto_candidates(table)
    of_all, of_fewer = select_at_lambda(table, price), select_at_lambda(fewer, price)
    for what in ("score", "p"):
        assert getattr(table, what)[of_all].tolist() == getattr(fewer, what)[of_fewer].tolist()
    assert of_all.sum(axis=1).tolist() == of_fewer.sum(axis=1).tolist()


def test_contenders_by_hand() -> None:
    # with room for one: 0.8 has a safer one before it, 0.7 has not, and 0.6 is no safer than that
    table = keep_pareto_candidates(lists([[0.9, 0.8, 0.7, 0.6]], [[0.3, 0.4, 0.1, 0.1]], room=1))
    assert table.p[table.eligible].tolist() == pytest.approx([0.3, 0.1])
    # with room for two both before it must be as safe; what is shut stands in nobody's way
    table = keep_pareto_candidates(lists([[0.9, 0.8, 0.7, 0.6]], [[0.3, 0.4, 0.1, 0.1]], room=2, shut=((0, 0),)))
    assert table.p[table.eligible].tolist() == pytest.approx([0.4, 0.1, 0.1])
    assert keep_pareto_candidates(lists([[0.9]], [[0.0]], room=0)).eligible.sum() == 0


def test_of_equal_values_the_first_is_taken() -> None:
    assert select_at_lambda(lists([[0.5, 0.5, 0.5]], [[0, 0, 0]], 1), 3.0).tolist() == [[True, False, False]]


def test_the_least_price_within_the_budget() -> None:
    two = lists([[0.9, 0.5], [0.9, 0.2]], [[0.4, 0.0], [0.4, 0.0]], room=1)
    # 0.9 gives way to 0.5 at a price of 1, to 0.2 at 1.75; a share of 0.21 is met when the first has
    limit = solve_lambda(evaluate_lambdas(two, 1.0), 0.21, 1.0)
    assert limit.lambda_ == 1.0
    assert limit.mean_p == pytest.approx(0.2)
    assert limit.hardness == pytest.approx((0.5 + 0.9) / 2)
    assert solve_lambda(evaluate_lambdas(two, 1.0), 0.41, 1.0).lambda_ == 0.0
    assert solve_lambda(evaluate_lambdas(two, 1.0), 0.01, 1.0).mean_p == 0.0


def test_where_no_price_is_enough_the_least_probable_are_kept() -> None:
    crowd = lists([[0.9], [0.8], [0.7]], [[0.5], [0.02], [0.04]], room=1)
    limit = solve_lambda(evaluate_lambdas(crowd, 1.0), 0.03, 1.0)
    assert limit.max_p == pytest.approx(0.04)
    assert (limit.n_selected, limit.mean_p) == (2, pytest.approx(0.03))
    assert solve_lambda(evaluate_lambdas(crowd, 1.0), 0.001, 1.0).n_selected == 0
    # of equal ones all or none: two of 0.04 would do with 0.0, three would not
    alike = lists([[0.9], [0.8], [0.7], [0.6]], [[0.0], [0.04], [0.04], [0.04]], room=1)
    assert solve_lambda(evaluate_lambdas(alike, 1.0), 0.028, 1.0).n_selected == 1


@given(st.data())
def test_no_other_choice_of_as_little_risk_is_harder(data: st.DataObject) -> None:
    numbers = st.integers(0, 20).map(lambda n: n / 20)
    scores = [sorted(data.draw(st.lists(numbers, min_size=4, max_size=4)), reverse=True) for _ in range(2)]
    ps = [data.draw(st.lists(numbers, min_size=4, max_size=4)) for _ in range(2)]
    table = lists(scores, ps, room=2)
    place = data.draw(st.integers(0, len(LAMBDAS) - 1))
    total = evaluate_lambdas(table, 1.0)
    for chosen in itertools.product(itertools.combinations(range(4), 2), repeat=2):
        risk = sum(ps[q][d] for q, documents in enumerate(chosen) for d in documents)
        score = sum(scores[q][d] for q, documents in enumerate(chosen) for d in documents)
        if risk <= total.p_sum[place]:
            assert score <= total.score_sum[place] + 1e-5


@given(st.data())
def test_what_is_allowed_is_what_is_chosen_and_what_comes_after(data: st.DataObject) -> None:
    numbers = st.integers(0, 20).map(lambda n: n / 20)
    rows = [
        sorted(data.draw(st.lists(st.tuples(numbers, numbers), min_size=5, max_size=5)), reverse=True) for _ in range(3)
    ]
    table = lists([[s for s, _ in row] for row in rows], [[p for _, p in row] for row in rows], room=2)
    share = 0.1
    limit = solve_lambda(evaluate_lambdas(table, 1.0), share, 1.0)
    chosen = select_at_lambda(table, limit.lambda_) & (table.p <= limit.max_p)
    passed = table.p <= compute_risk_limits(table, limit, share)
    for mine, through, p in zip(chosen, passed, table.p, strict=True):
        last = max(np.flatnonzero(mine), default=-1)
        assert (through[: last + 1] == mine[: last + 1]).all()
        assert (p[last + 1 :][through[last + 1 :]] <= max(share, limit.max_p)).all()
        # the best that pass are the chosen ones: compose takes them by score
        assert np.flatnonzero(through)[: mine.sum()].tolist() == np.flatnonzero(mine).tolist()


def test_rows_become_lists() -> None:
    table, at = pad_by_query(
        np.array([0, 0, 2]),
        np.array([0.3, 0.2, 0.9], np.float32),
        np.array([0.1, 0.2, 0.3], np.float32),
        np.array([1, 1, 1]),
    )
    assert table.score.shape == (3, 2)
    assert table.eligible.tolist() == [[True, True], [False, False], [True, False]]
    assert table.p[at].tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_the_budget_is_the_same_in_any_unit(scale: float) -> None:
    rows = pl.DataFrame({"query_id": ["a", "a", "b", "b"], "score": [0.9, 0.5, 0.9, 0.2]})
    unit = estimate_score_scale(rows.with_columns(pl.col("score") * scale).lazy())
    assert unit / scale == pytest.approx(0.25, rel=0.5)  # (0.2 + 0.35) / 2, to a power of 2
    two = lists([[0.9 * scale, 0.5 * scale], [0.9 * scale, 0.2 * scale]], [[0.4, 0.0], [0.4, 0.0]], room=1)
    limit = solve_lambda(evaluate_lambdas(two, unit), 0.21, unit)
    assert (limit.n_selected, limit.mean_p) == (2, pytest.approx(0.2))


def open_of(*rows: tuple[object, ...]) -> list[bool]:
    names = ["score", "p_false_negative", "positive_kind", "curated_negative", "llm_judge", "verifier_false_negative"]
    frame = pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None).with_columns(
        pl.col("score", "p_false_negative").cast(pl.Float32), query_id=pl.lit("q"),
        positive_similarity=pl.lit(0.1, pl.Float32), same_text=pl.lit(None, pl.Boolean),
        contains_answer=pl.lit(None, pl.Boolean),
    )  # fmt: skip
    found, _, here = pad_eligible_candidates(RiskPolicy(num_negatives=2), frame)
    assert found.quota.tolist() == [2 - sum(row[3] is True for row in rows)]
    return here.tolist()  # type: ignore[no-any-return]


def test_what_may_be_emitted_at_all() -> None:
    assert open_of(
        (0.9, 0.1, None, None, None, None),
        (0.8, 0.51, None, None, None, None),  # likelier false than not
        (0.7, 0.1, "own", None, None, None),
        (0.6, 0.1, "paraphrase", None, None, None),
        (0.5, 0.1, None, True, None, None),
        (0.4, 0.1, None, None, True, None),  # the judge says that it answers
        (0.3, 0.1, None, None, False, None),
        (0.2, 0.1, None, None, None, True),
        (0.1, None, None, None, None, None),
    ) == [True, False, False, False, False, False, True, False, False]

"""Selection under a risk solution: by hand, and compared with every possible selection."""

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
    RiskSolution,
    estimate_score_scale,
    evaluate_lambdas,
    keep_pareto_candidates,
    mark_through_last_selected,
    pad_by_query,
    pad_eligible_candidates,
    select_at_lambda,
    solve_lambda,
)


def pad(
    scores: list[list[float]], ps: list[list[float]], quota: int, excluded: tuple[tuple[int, int], ...] = ()
) -> PaddedCandidates:
    score, p = np.array(scores, np.float32), np.array(ps, np.float32)
    eligible = np.ones(score.shape, np.bool_)
    for cell in excluded:
        eligible[cell] = False
    return PaddedCandidates(score, p, eligible, np.full(len(score), quota))


def test_the_candidates_with_the_highest_score_minus_lambda_p_are_selected() -> None:
    # values at lambda 1: 0.9 - 0.5 = 0.4, 0.8 - 0.1 = 0.7, 0.5, 0.3
    one = pad([[0.9, 0.8, 0.5, 0.3]], [[0.5, 0.1, 0.0, 0.0]], quota=2)
    assert select_at_lambda(one, 1.0).tolist() == [[False, True, True, False]]
    assert select_at_lambda(one, 0.0).tolist() == [[True, True, False, False]]
    # an excluded candidate is not selected, even if the quota is not reached
    assert select_at_lambda(pad([[0.9, 0.8]], [[0, 0]], 2, excluded=((0, 0),)), 0.0).tolist() == [[False, True]]


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
def test_selection_equals_sorting_by_value(rows: list[tuple[list[tuple[int, int, bool]], int]], lambda_: float) -> None:
    width = len(rows[0][0]) if rows else 1
    cells = np.array([cells for cells, _ in rows], np.float64).reshape(len(rows), width, 3)
    table = PaddedCandidates(
        (cells[:, :, 0] / 4).astype(np.float32),
        (cells[:, :, 1] / 4).astype(np.float32),
        cells[:, :, 2] > 0,
        np.array([quota for _, quota in rows], np.int64),
    )
    expected = np.zeros(table.eligible.shape, np.bool_)
    for query, quota in enumerate(table.quota):
        value = table.score[query].astype(np.float64) - lambda_ * table.p[query]
        eligible = [column for column in range(width) if table.eligible[query, column]]
        expected[query, sorted(eligible, key=lambda column: (-value[column], column))[:quota]] = True
    assert select_at_lambda(table, lambda_).tolist() == expected.tolist()


@given(ROWS, st.sampled_from(LAMBDAS.tolist()))
def test_pareto_candidates_give_the_same_selection_at_any_lambda(
    rows: list[tuple[list[tuple[int, int, bool]], int]], lambda_: float
) -> None:
    width = len(rows[0][0]) if rows else 1
    cells = np.array([sorted(cells, reverse=True) for cells, _ in rows], np.float64).reshape(len(rows), width, 3)
    table = PaddedCandidates(
        (cells[:, :, 0] / 4).astype(np.float32),
        (cells[:, :, 1] / 4).astype(np.float32),
        cells[:, :, 2] > 0,
        np.array([quota for _, quota in rows], np.int64),
    )
    pareto = keep_pareto_candidates(table)
    selected, selected_pareto = select_at_lambda(table, lambda_), select_at_lambda(pareto, lambda_)
    for name in ("score", "p"):
        assert getattr(table, name)[selected].tolist() == getattr(pareto, name)[selected_pareto].tolist()
    assert selected.sum(axis=1).tolist() == selected_pareto.sum(axis=1).tolist()


def test_a_candidate_is_dropped_if_enough_better_ones_are_no_riskier() -> None:
    # quota 1: 0.9 has a lower p than 0.8; 0.7 has the lowest p so far; 0.6 has the same p as 0.7
    table = keep_pareto_candidates(pad([[0.9, 0.8, 0.7, 0.6]], [[0.3, 0.4, 0.1, 0.1]], quota=1))
    assert table.p[table.eligible].tolist() == pytest.approx([0.3, 0.1])
    # quota 2: two better ones must be no riskier; an excluded one does not count
    table = keep_pareto_candidates(pad([[0.9, 0.8, 0.7, 0.6]], [[0.3, 0.4, 0.1, 0.1]], quota=2, excluded=((0, 0),)))
    assert table.p[table.eligible].tolist() == pytest.approx([0.4, 0.1, 0.1])
    assert keep_pareto_candidates(pad([[0.9]], [[0.0]], quota=0)).eligible.sum() == 0


def test_of_equal_values_the_first_is_selected() -> None:
    assert select_at_lambda(pad([[0.5, 0.5, 0.5]], [[0, 0, 0]], 1), 3.0).tolist() == [[True, False, False]]


def test_the_smallest_lambda_that_keeps_the_limit_is_taken() -> None:
    two = pad([[0.9, 0.5], [0.9, 0.2]], [[0.4, 0.0], [0.4, 0.0]], quota=1)
    # 0.5 replaces 0.9 from lambda 1 on, 0.2 replaces it from 1.75 on; the first replacement gives a mean p of 0.2
    solution = solve_lambda(evaluate_lambdas(two, 1.0), 0.21, 1.0)
    assert solution.lambda_ == 1.0
    assert solution.mean_p == pytest.approx(0.2)
    assert solution.hardness == pytest.approx((0.5 + 0.9) / 2)
    assert solve_lambda(evaluate_lambdas(two, 1.0), 0.41, 1.0).lambda_ == 0.0
    assert solve_lambda(evaluate_lambdas(two, 1.0), 0.01, 1.0).mean_p == 0.0


def test_if_no_lambda_keeps_the_limit_the_candidates_with_the_smallest_p_are_kept() -> None:
    three = pad([[0.9], [0.8], [0.7]], [[0.5], [0.02], [0.04]], quota=1)
    solution = solve_lambda(evaluate_lambdas(three, 1.0), 0.03, 1.0)
    assert solution.max_p == pytest.approx(0.04)
    assert (solution.n_selected, solution.mean_p) == (2, pytest.approx(0.03))
    assert solve_lambda(evaluate_lambdas(three, 1.0), 0.001, 1.0).n_selected == 0
    # of equal p all are kept or none: 0.0 with two of 0.04 keeps the limit, with three it does not
    equal_p = pad([[0.9], [0.8], [0.7], [0.6]], [[0.0], [0.04], [0.04], [0.04]], quota=1)
    assert solve_lambda(evaluate_lambdas(equal_p, 1.0), 0.028, 1.0).n_selected == 1


@given(st.data())
def test_no_other_selection_of_the_same_risk_is_harder(data: st.DataObject) -> None:
    numbers = st.integers(0, 20).map(lambda n: n / 20)
    scores = [sorted(data.draw(st.lists(numbers, min_size=4, max_size=4)), reverse=True) for _ in range(2)]
    ps = [data.draw(st.lists(numbers, min_size=4, max_size=4)) for _ in range(2)]
    table = pad(scores, ps, quota=2)
    position = data.draw(st.integers(0, len(LAMBDAS) - 1))
    total = evaluate_lambdas(table, 1.0)
    for chosen in itertools.product(itertools.combinations(range(4), 2), repeat=2):
        risk = sum(ps[q][d] for q, documents in enumerate(chosen) for d in documents)
        score = sum(scores[q][d] for q, documents in enumerate(chosen) for d in documents)
        if risk <= total.p_sum[position]:
            assert score <= total.score_sum[position] + 1e-5


@given(st.data())
def test_limits_accept_the_selected_and_safe_candidates(data: st.DataObject) -> None:
    numbers = st.integers(0, 20).map(lambda n: n / 20)
    rows = [
        sorted(data.draw(st.lists(st.tuples(numbers, numbers), min_size=5, max_size=5)), reverse=True) for _ in range(3)
    ]
    table = pad([[s for s, _ in row] for row in rows], [[p for _, p in row] for row in rows], quota=2)
    share = 0.1
    solution = solve_lambda(evaluate_lambdas(table, 1.0), share, 1.0)
    selection = solution.select(table)
    within_limit = table.p <= solution.compute_limits(table)
    for selected, within, p in zip(selection, within_limit, table.p, strict=True):
        last = max(np.flatnonzero(selected), default=-1)
        assert (within[: last + 1] == selected[: last + 1]).all()
        assert (p[last + 1 :][within[last + 1 :]] <= max(share, solution.max_p)).all()
        # the sampler takes the best ones within the limit: these are the selected ones
        assert np.flatnonzero(within)[: selected.sum()].tolist() == np.flatnonzero(selected).tolist()


def test_limits_by_hand() -> None:
    # at lambda 1 the values are 0.4, 0.7, 0.5, 0.3; 0.7 and 0.5 are selected
    table = pad([[0.9, 0.8, 0.5, 0.3]], [[0.5, 0.1, 0.0, 0.0]], quota=2)
    solution = RiskSolution(0.02, 1.0, 1.0, 0.05, 0.65, 2)
    assert solution.select(table).tolist() == [[False, True, True, False]]
    # score - 0.5 down to the last selected one, then the accepted share
    assert solution.compute_limits(table)[0].tolist() == pytest.approx([0.4, 0.3, 0.0, 0.02])
    no_lambda = RiskSolution(0.02, 0.0, 1.0, 0.3, 0.85, 2)
    assert no_lambda.compute_limits(table)[0].tolist() == pytest.approx([1.0, 1.0, 0.02, 0.02])
    max_p = RiskSolution(0.02, 1.0, 0.05, 0.0, 0.5, 1)
    assert max_p.select(table).tolist() == [[False, False, True, False]]
    assert max_p.compute_limits(table)[0].max() == np.float32(0.05)
    nothing = pad([[]], [[]], quota=2)
    assert solution.select(nothing).shape == solution.compute_limits(nothing).shape == (1, 0)


def test_cells_up_to_the_last_selected_one() -> None:
    selection = np.array([[False, True, False, True, False], [False] * 5, [True] + [False] * 4])
    assert mark_through_last_selected(selection).sum(axis=1).tolist() == [4, 0, 1]


def test_a_restriction_takes_eligibility_away_and_never_gives_it() -> None:
    table = pad([[0.9, 0.8]], [[0.1, 0.6]], quota=1, excluded=((0, 0),))
    assert table.restrict(table.p <= 0.5).eligible.tolist() == [[False, False]]
    assert table.restrict(table.p > 0.5).eligible.tolist() == [[False, True]]


def test_rows_are_padded_by_query() -> None:
    table, cells = pad_by_query(
        np.array([0, 0, 2]),
        np.array([0.3, 0.2, 0.9], np.float32),
        np.array([0.1, 0.2, 0.3], np.float32),
        np.array([1, 1, 1]),
    )
    assert table.score.shape == (3, 2)
    assert table.eligible.tolist() == [[True, True], [False, False], [True, False]]
    assert table.p[cells].tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_the_solution_does_not_depend_on_the_unit_of_the_scores(scale: float) -> None:
    rows = pl.DataFrame({"query_id": ["a", "a", "b", "b"], "score": [0.9, 0.5, 0.9, 0.2]})
    score_scale = estimate_score_scale(rows.with_columns(pl.col("score") * scale).lazy())
    assert score_scale / scale == pytest.approx(0.25, rel=0.5)  # (0.2 + 0.35) / 2, to a power of 2
    two = pad([[0.9 * scale, 0.5 * scale], [0.9 * scale, 0.2 * scale]], [[0.4, 0.0], [0.4, 0.0]], quota=1)
    solution = solve_lambda(evaluate_lambdas(two, score_scale), 0.21, score_scale)
    assert (solution.n_selected, solution.mean_p) == (2, pytest.approx(0.2))


def find_eligible(*rows: tuple[object, ...]) -> list[bool]:
    names = ["score", "p_false_negative", "positive_kind", "curated_negative", "llm_judge"]
    frame = pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None).with_columns(
        pl.col("score", "p_false_negative").cast(pl.Float32), query_id=pl.lit("q"),
        positive_similarity=pl.lit(0.1, pl.Float32), same_text=pl.lit(None, pl.Boolean),
        contains_answer=pl.lit(None, pl.Boolean),
    )  # fmt: skip
    candidates, _, is_eligible = pad_eligible_candidates(RiskPolicy(num_negatives=2), frame)
    assert candidates.quota.tolist() == [2 - sum(row[3] is True for row in rows)]
    return is_eligible.tolist()  # type: ignore[no-any-return]


def test_which_candidates_are_eligible() -> None:
    assert find_eligible(
        (0.9, 0.1, None, None, None),
        (0.8, 0.51, None, None, None),  # more likely false than not
        (0.7, 0.1, "own", None, None),
        (0.6, 0.1, "paraphrase", None, None),
        (0.5, 0.1, None, True, None),
        (0.4, 0.1, None, None, True),  # the LLM judge finds it relevant
        (0.3, 0.1, None, None, False),
        (0.1, None, None, None, None),
    ) == [True, False, False, False, False, False, True, False]

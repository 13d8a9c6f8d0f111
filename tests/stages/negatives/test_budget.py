"""The budget by hand, and against every choice there is."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.negatives.budget import PRICES, Lists, allowed, choose, padded, settle, tried


def lists(scores: list[list[float]], ps: list[list[float]], room: int, shut: tuple[tuple[int, int], ...] = ()) -> Lists:
    score, p = np.array(scores, np.float32), np.array(ps, np.float32)
    open_ = np.ones(score.shape, np.bool_)
    for place in shut:
        open_[place] = False
    return Lists(score, p, open_, np.full(len(score), room))


def test_a_price_by_hand() -> None:
    # values at price 1: 0.9 - 0.5 = 0.4, 0.8 - 0.1 = 0.7, 0.5, 0.3
    one = lists([[0.9, 0.8, 0.5, 0.3]], [[0.5, 0.1, 0.0, 0.0]], room=2)
    assert choose(one, 1.0).tolist() == [[False, True, True, False]]
    assert choose(one, 0.0).tolist() == [[True, True, False, False]]
    # what is shut is not taken, and fewer than the room are kept as they are
    assert choose(lists([[0.9, 0.8]], [[0, 0]], 2, shut=((0, 0),)), 0.0).tolist() == [[False, True]]


def test_of_equal_values_the_first_is_taken() -> None:
    assert choose(lists([[0.5, 0.5, 0.5]], [[0, 0, 0]], 1), 3.0).tolist() == [[True, False, False]]


def test_the_least_price_within_the_budget() -> None:
    two = lists([[0.9, 0.5], [0.9, 0.2]], [[0.4, 0.0], [0.4, 0.0]], room=1)
    # 0.9 gives way to 0.5 at a price of 1, to 0.2 at 1.75; a share of 0.21 is met when the first has
    limit = settle(tried(two), 0.21)
    assert limit.price == 1.0
    assert limit.expected == pytest.approx(0.2)
    assert limit.hardness == pytest.approx((0.5 + 0.9) / 2)
    assert settle(tried(two), 0.41).price == 0.0
    assert settle(tried(two), 0.01).expected == 0.0


def test_where_no_price_is_enough_the_least_probable_are_kept() -> None:
    crowd = lists([[0.9], [0.8], [0.7]], [[0.5], [0.02], [0.04]], room=1)
    limit = settle(tried(crowd), 0.03)
    assert limit.ceiling == pytest.approx(0.04)
    assert (limit.n, limit.expected) == (2, pytest.approx(0.03))
    assert settle(tried(crowd), 0.001).n == 0
    # of equal ones all or none: two of 0.04 would do with 0.0, three would not
    alike = lists([[0.9], [0.8], [0.7], [0.6]], [[0.0], [0.04], [0.04], [0.04]], room=1)
    assert settle(tried(alike), 0.028).n == 1


@given(st.data())
def test_no_other_choice_of_as_little_risk_is_harder(data: st.DataObject) -> None:
    numbers = st.integers(0, 20).map(lambda n: n / 20)
    scores = [sorted(data.draw(st.lists(numbers, min_size=4, max_size=4)), reverse=True) for _ in range(2)]
    ps = [data.draw(st.lists(numbers, min_size=4, max_size=4)) for _ in range(2)]
    table = lists(scores, ps, room=2)
    place = data.draw(st.integers(0, len(PRICES) - 1))
    total = tried(table)
    for chosen in itertools.product(itertools.combinations(range(4), 2), repeat=2):
        risk = sum(ps[q][d] for q, documents in enumerate(chosen) for d in documents)
        score = sum(scores[q][d] for q, documents in enumerate(chosen) for d in documents)
        if risk <= total.p[place]:
            assert score <= total.score[place] + 1e-5


@given(st.data())
def test_what_is_allowed_is_what_is_chosen_and_what_comes_after(data: st.DataObject) -> None:
    numbers = st.integers(0, 20).map(lambda n: n / 20)
    rows = [
        sorted(data.draw(st.lists(st.tuples(numbers, numbers), min_size=5, max_size=5)), reverse=True) for _ in range(3)
    ]
    table = lists([[s for s, _ in row] for row in rows], [[p for _, p in row] for row in rows], room=2)
    share = 0.1
    limit = settle(tried(table), share)
    chosen = choose(table, limit.price) & (table.p <= limit.ceiling)
    passed = table.p <= allowed(table, limit, share)
    for mine, through, p in zip(chosen, passed, table.p, strict=True):
        last = max(np.flatnonzero(mine), default=-1)
        assert (through[: last + 1] == mine[: last + 1]).all()
        assert (p[last + 1 :][through[last + 1 :]] <= max(share, limit.ceiling)).all()
        # the best that pass are the chosen ones: compose takes them by score
        assert np.flatnonzero(through)[: mine.sum()].tolist() == np.flatnonzero(mine).tolist()


def test_rows_become_lists() -> None:
    table, at = padded(
        np.array([0, 0, 2]),
        np.array([0.3, 0.2, 0.9], np.float32),
        np.array([0.1, 0.2, 0.3], np.float32),
        np.array([1, 1, 1]),
    )
    assert table.score.shape == (3, 2)
    assert table.open.tolist() == [[True, True], [False, False], [True, False]]
    assert table.p[at].tolist() == pytest.approx([0.1, 0.2, 0.3])

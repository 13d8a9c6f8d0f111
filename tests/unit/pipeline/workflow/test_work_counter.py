"""Counts of what a stage reports as done."""

from pipeline.workflow.work_counter import WorkCounter
from stages.core.context import NullProgress


def test_reports_of_a_unit_are_its_state_and_not_a_step() -> None:
    counter = WorkCounter(NullProgress())
    counter.advance(2, 10, "texts", 50)
    counter.advance(10, 10, "texts", 220)
    assert counter.counts == {"texts": 10, "tokens": 220}


def test_a_count_that_starts_again_is_added() -> None:
    counter = WorkCounter(NullProgress())
    for done, tokens in ((4, 40), (9, 90), (3, 30), (5, 50)):
        counter.advance(done, None, "texts", tokens)
    counter.advance(7, None, "pairs")
    assert counter.counts == {"texts": 14, "tokens": 140, "pairs": 7}

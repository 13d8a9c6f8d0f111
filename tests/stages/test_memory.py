"""The peak of this process's memory, counted anew."""

import sys

import pytest

from stages.memory import count_anew, peak

BIG = 200 << 20


def test_the_peak_holds_what_was_given_back() -> None:
    count_anew()
    before = peak()
    held = bytearray(BIG)
    del held
    assert peak() >= before + BIG // 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts anew")
def test_it_is_counted_anew() -> None:
    held = bytearray(BIG)
    del held
    high = peak()
    count_anew()
    assert peak() <= high - BIG // 2

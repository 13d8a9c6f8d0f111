"""Rates of tokens: between measured lengths, and from what is published."""

import numpy as np
import pytest

from stages.core.errors import InputError
from stages.planning.throughput import GPUS, Gpu, Rate, Shape, Sweep, gpu_named, published, published_sweep


def test_seconds_lie_on_a_line_between_the_measured_lengths_and_stay_beyond_them() -> None:
    rate = Rate((10.0, 30.0), (0.1, 0.3))
    # 10 x 0.1 + 20 x 0.2 + 30 x 0.3; at 5 and 100 tokens the nearest measured rate
    assert rate.total(np.array([10, 20, 30])) == pytest.approx(1 + 4 + 9)
    assert rate.total(np.array([5, 100])) == pytest.approx(0.5 + 30)


def test_a_text_counts_as_often_as_it_stands_for_others() -> None:
    assert Rate((1.0,), (0.5,)).total(np.array([2, 4]), np.array([10.0, 1.5])) == pytest.approx(10 + 3)


def test_no_token_takes_less_than_the_slowest_part() -> None:
    assert Rate((1.0, 2.0), (0.1, 0.3)).at_least(0.2).seconds == (0.2, 0.3)


def test_operations_of_a_token() -> None:
    # 2 x 1,000 parameters, and 4 x 2 layers x 8 x 100 tokens in attention
    assert Shape(1_000, 5_000, 2, 8).flops(100) == 2_000 + 6_400


def test_a_published_rate_is_taken_at_its_efficiency_over_all_gpus() -> None:
    gpu, shape = Gpu("of 1,000 operations a second", 1_000.0), Shape(150, 150, 0, 0)
    once = published(gpu, shape, 512)
    assert once.total(np.array([7])) == pytest.approx(7 * 300 / (1_000 * 0.3))
    assert published(gpu, shape, 512, gpus=4).seconds[0] == pytest.approx(once.seconds[0] / 4)
    assert published(gpu, shape, 512, passes=3).seconds[0] == pytest.approx(once.seconds[0] * 3)
    assert "published rate x 0.3" in once.source
    assert published_sweep(gpu, 0.25).total(3_000, 4) == pytest.approx(3_000 * 2 / 300 + 1)


def test_longer_texts_cost_more_a_token() -> None:
    rate = published(Gpu("", 10.0), Shape(1, 1, 1, 1), 101)
    # at 1 token 2 + 4, at 101 tokens 2 + 404, half-way 2 + 204 operations; 3 a second
    assert rate.total(np.array([51])) == pytest.approx(51 * 206 / 3)


def test_search_is_products_and_what_is_kept() -> None:
    assert Sweep(2.0, 10.0).total(3, 4) == 46


def test_a_gpu_goes_by_its_name_and_an_unknown_one_is_refused_with_the_names() -> None:
    assert gpu_named("H100") is GPUS["h100"]
    with pytest.raises(InputError, match="h100, h200"):
        gpu_named("voodoo2")

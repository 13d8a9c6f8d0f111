"""Draws are fixed for good: another value here is another sample, and other results, for everyone."""

import pytest
import xxhash

from stages.core.hashing import sample_by_hash, stable_hash


def test_a_hash_depends_on_seed_purpose_and_key() -> None:
    assert stable_hash(42, "sample", "q1") == xxhash.xxh3_64_intdigest(b"42:sample:q1") == 17703629652593745040
    assert (
        len(
            {
                stable_hash(42, "sample", "q1"),
                stable_hash(1, "sample", "q1"),
                stable_hash(42, "order", "q1"),
                stable_hash(42, "sample", "q2"),
            }
        )
        == 4
    )


@pytest.mark.parametrize("bit", [0, 31, 63])
def test_every_bit_is_about_even(bit: int) -> None:
    ones = sum(stable_hash(0, "compose", f"q:{number}") >> bit & 1 for number in range(1000))
    assert 420 < ones < 580


def test_a_sample_holds_the_ids_with_the_smallest_hashes_each_once() -> None:
    ids = ["q1", "q2", "q3", "q4", "q2"]
    by_hash = sorted(["q1", "q2", "q3", "q4"], key=lambda one: xxhash.xxh3_64_intdigest(f"0:x:{one}".encode()))
    assert sample_by_hash(ids, 2, "x") == by_hash[:2]
    assert sample_by_hash(ids, 9, "x") == by_hash
    assert sample_by_hash([one for one in ids if one != by_hash[0]], 2, "x") == by_hash[1:3]
    assert sample_by_hash(ids, 4, "x", seed=1) == sorted(
        by_hash, key=lambda one: xxhash.xxh3_64_intdigest(f"1:x:{one}".encode())
    )

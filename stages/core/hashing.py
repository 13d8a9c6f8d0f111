"""Random numbers that do not hang on position: the same key always draws the same, whatever else comes or goes."""

from typing import Any

import xxhash

from stages.core.params import option


def stable_hash(seed: int, purpose: str, key: str) -> int:
    """64 bits for `key`, as good as independent of those for any other key, purpose or seed."""
    return xxhash.xxh3_64_intdigest(f"{seed}:{purpose}:{key}".encode())


def seed_option(exclude_from_key: bool = False) -> Any:
    """The parameter `seed`, for stages of one section that share it."""
    return option(
        0,
        "Seed of the draws, which also depend on the query's id and never on its position.",
        exclude_from_key=exclude_from_key,
        ge=0,
    )

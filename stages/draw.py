"""Random numbers that do not hang on position: the same key always draws the same, whatever else comes or goes."""

import xxhash


def draw(seed: int, purpose: str, key: str) -> int:
    """64 bits for `key`, as good as independent of those for any other key, purpose or seed."""
    return xxhash.xxh3_64_intdigest(f"{seed}:{purpose}:{key}".encode())

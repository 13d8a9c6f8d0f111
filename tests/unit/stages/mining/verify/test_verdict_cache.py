from pathlib import Path

import pytest

from stages.mining.verify.verdict_cache import VerdictCache


def test_added_verdicts_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "judge.jsonl"
    cache = VerdictCache(path)
    assert (cache.verdicts, path.exists()) == ({}, False)
    cache.add({"a": True, "b": False})
    cache.add({"b": True, "c": True})
    cache.add({"a": False})
    cache.add({})
    assert cache.verdicts == VerdictCache(path).verdicts == {"a": True, "b": False, "c": True}
    assert path.read_text() == (
        '{"pair": "a", "relevant": true}\n{"pair": "b", "relevant": false}\n{"pair": "c", "relevant": true}\n'
    )


def test_a_truncated_last_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    VerdictCache(path).add({"a": True, "b": False})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        cache = VerdictCache(path)
        before = cache.verdicts
        assert before.items() <= {"a": True, "b": False}.items()
        assert cache.n_damaged_lines == (length not in (0, 31, 32, 64))
        cache.add({"c": True})
        cache.add({"d": True})
        assert VerdictCache(path).verdicts == {**before, "c": True, "d": True}


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b'{"pair": "a"}', b'{"pair": 1, "relevant": true}', b'{"pair": "a", "relevant": 1}', b"[]", b"3"],
)
def test_damaged_lines_are_counted_and_ignored(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "judge.jsonl"
    path.write_bytes(b'{"pair": "x", "relevant": true}\n' + line + b'\n{"pair": "y", "relevant": false}\n')
    cache = VerdictCache(path)
    assert (cache.verdicts, cache.n_damaged_lines) == ({"x": True, "y": False}, 1)


def test_the_first_line_of_a_pair_counts(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    path.write_text('{"pair": "x", "relevant": true}\n{"pair": "x", "relevant": false}\n')
    assert VerdictCache(path).verdicts == {"x": True}

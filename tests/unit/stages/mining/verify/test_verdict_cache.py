from pathlib import Path

import pytest

from stages.mining.verify.verdict_cache import VerdictCache


def test_what_is_added_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "judge.jsonl"
    ledger = VerdictCache(path)
    assert (ledger.verdicts, path.exists()) == ({}, False)
    ledger.add({"a": True, "b": False})
    ledger.add({"b": True, "c": True})
    ledger.add({"a": False})
    ledger.add({})
    assert ledger.verdicts == VerdictCache(path).verdicts == {"a": True, "b": False, "c": True}
    assert path.read_text() == (
        '{"pair": "a", "relevant": true}\n{"pair": "b", "relevant": false}\n{"pair": "c", "relevant": true}\n'
    )


def test_a_torn_last_line_is_passed_over_and_the_next_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    VerdictCache(path).add({"a": True, "b": False})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        ledger = VerdictCache(path)
        before = ledger.verdicts
        assert before.items() <= {"a": True, "b": False}.items()
        assert ledger.n_damaged_lines == (length not in (0, 31, 32, 64))
        ledger.add({"c": True})
        ledger.add({"d": True})
        assert VerdictCache(path).verdicts == {**before, "c": True, "d": True}


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b'{"pair": "a"}', b'{"pair": 1, "relevant": true}', b'{"pair": "a", "relevant": 1}', b"[]", b"3"],
)
def test_damaged_lines_are_counted_and_hurt_no_other(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "judge.jsonl"
    path.write_bytes(b'{"pair": "x", "relevant": true}\n' + line + b'\n{"pair": "y", "relevant": false}\n')
    ledger = VerdictCache(path)
    assert (ledger.verdicts, ledger.n_damaged_lines) == ({"x": True, "y": False}, 1)


def test_of_two_lines_on_a_pair_the_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    path.write_text('{"pair": "x", "relevant": true}\n{"pair": "x", "relevant": false}\n')
    assert VerdictCache(path).verdicts == {"x": True}

import pytest

from pipeline.cli.progress import BarProgress, LineProgress


def test_a_plain_line_says_how_many_units_and_tokens_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    plain = LineProgress(verbose=True)
    plain.advance(0, 1_000, "texts")
    now = 110.0
    plain.advance(500, 1_000, "texts", tokens=20_000)
    assert capsys.readouterr().err.split(" ", 1)[1] == "  500 of 1,000 texts, 50 texts/s, 2,000 tokens/s, 10 s left\n"
    plain.advance(0, None, "steps")
    now = 120.0
    plain.advance(4, None, "steps")
    assert capsys.readouterr().err.endswith("  4 steps, 0.4 steps/s\n")


def test_work_of_one_step_says_no_rate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    plain = LineProgress(verbose=True)
    now = 110.0
    plain.advance(50, 50, "queries")
    assert capsys.readouterr().err.endswith("  50 of 50 queries\n")


def test_a_bar_says_no_rate_before_it_knows_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    terminal = BarProgress()
    monkeypatch.setattr("time.monotonic", lambda: now)
    terminal.rate_meter.started_at = now
    terminal.advance(50, 100, "queries")
    assert [task.fields["rate"] for task in terminal.bars.tasks] == [""]
    now = 102.0
    terminal.advance(100, 100, "queries")
    assert [task.fields["rate"] for task in terminal.bars.tasks] == ["25/s"]
    terminal.close()

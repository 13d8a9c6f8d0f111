"""The yardstick is the same work every time."""

from stages.planning import cpu_benchmark


def test_the_work_is_fixed() -> None:
    assert cpu_benchmark.work() == cpu_benchmark.work() > 0


def test_it_takes_the_median(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    clock = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(cpu_benchmark, "work", lambda: 1)
    monkeypatch.setattr(cpu_benchmark.time, "monotonic", lambda: next(clock))
    assert cpu_benchmark.taken() == 2.0

"""A plan for a person and for a script."""

from typing import Any

from pipeline.cli.output import CommandResult, ResultTable
from pipeline.cli.plan import format_plan
from stages.planning.estimate import StepEstimate
from stages.planning.rates import CONSTANT, PROBE, PastRun
from stages.planning.step_work import StepWork

MASK = StepEstimate("mask", StepWork(100, "queries", 50, "5,000 candidates", 900, 2_000_000), 30.0, 1e9, CONSTANT)
TRAIN = StepEstimate("train", StepWork(24, "steps", 9.0, "60 groups", 0, 3_000_000), 90.0, 2e9, PROBE)
VERIFY = StepEstimate("verify", StepWork(500, "judgements", None, "at most 500 requests"), None, 1e9, "")


def make_run(step: str, seconds: float, **work: int) -> PastRun:
    return PastRun(step, seconds, 0, work, {})


def get_rows(result: CommandResult) -> dict[str, list[str]]:
    """The table: step -> its other cells."""
    (table,) = [part for part in result.parts if isinstance(part, ResultTable)]
    return {row[0]: list(row[1:]) for row in table.rows}


def get_lines(result: CommandResult) -> list[str]:
    return [part for part in result.parts if isinstance(part, str)]


def test_a_script_reads_plain_values() -> None:
    data = format_plan(["pairs", "mask", "train"], [MASK, TRAIN], [("train.epochs=1", 80.0)], {}).data
    assert data["up_to_date"] == ["pairs"]
    assert (data["seconds"], data["slowest_step"]) == (120.0, "train")
    assert data["what_ifs"] == [{"setting": "train.epochs=1", "seconds": 80.0}]
    mask: dict[str, Any] = data["steps"][0]
    assert mask == {
        "step": "mask",
        "n_units": 100,
        "unit": "queries",
        "unit_cost": 50,
        "description": "5,000 candidates",
        "seconds": 30.0,
        "memory_bytes": 1e9,
        "disk_bytes": 2_000_000,
        "rate_source": CONSTANT,
        "last_run_seconds": None,
    }


def test_a_person_reads_a_row_a_step_and_the_total() -> None:
    result = format_plan(["pairs", "mask", "train"], [MASK, TRAIN], [("train.epochs=1", 80.0)], {})
    assert get_rows(result) == {
        "pairs": ["up to date", "", "", "", "", ""],
        "mask": ["5,000 candidates", "30.0 s", "1.0 GB", "2 MB", "constant", ""],
        "train": ["60 groups", "1.5 min", "2.0 GB", "3 MB", "probe", ""],
    }
    assert get_lines(result) == [
        "in all 2.0 min, at most 2.0 GB of memory, 5 MB of disk",
        "train takes 75% of the time",
        "  --set train.epochs=1: 1.3 min in all",
    ]


def test_the_last_run_is_shown_if_it_did_as_much() -> None:
    last_runs = {"pairs": make_run("pairs", 4.0), "mask": make_run("mask", 7.0, queries=105)}
    rows = get_rows(format_plan(["pairs", "mask"], [MASK], [], last_runs))
    assert (rows["pairs"][-1], rows["mask"][-1]) == ("4.0 s", "7.0 s")
    less = {"mask": make_run("mask", 7.0, queries=80)}
    assert get_rows(format_plan(["mask"], [MASK], [], less))["mask"][-1] == ""


def test_a_step_with_unknown_time_is_not_counted() -> None:
    result = format_plan(["verify", "mask"], [VERIFY, MASK], [], {})
    assert get_rows(result)["verify"][1] == "unknown"
    assert result.data["seconds"] == 30.0
    assert "verify" in get_lines(result)[0]
    alone = format_plan(["verify"], [VERIFY], [], {})
    assert alone.data["slowest_step"] is None


def test_nothing_to_do_is_one_line() -> None:
    result = format_plan(["pairs"], [], [], {})
    assert len(get_lines(result)) == 1
    assert result.data["steps"] == []

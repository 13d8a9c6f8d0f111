"""What a command tells of a stage."""

from pathlib import Path

from pipeline.cli.build import format_summary
from pipeline.workflow.artifact_store import Artifact


def told(accepted: float | None = None, **summary: object) -> list[object]:
    return list(format_summary("sample", Artifact(Path(), {"summary": summary}), accepted))


def test_what_is_kept_with_a_weight_is_said_beside_the_share_that_it_raises() -> None:
    plain = told(negatives=4074, n_weighted_negatives=0, expected_false_negative_rate=0.0198)
    assert plain[1:] == ["false ones expected among the 4,074 negatives: 1.98%"]
    [_, line] = told(negatives=4074, n_weighted_negatives=834, expected_false_negative_rate=0.0466)
    assert str(line).startswith("false ones expected among the 4,074 negatives: 4.66%; 834 of them the mask would have")
    assert "beyond the share of false ones that is accepted" in str(line)
    assert len(told(negatives=9, n_weighted_negatives=0, expected_false_negative_rate=None)) == 1


def test_where_others_are_taken_than_the_mask_reckoned_with_the_share_is_compared() -> None:
    [_, line] = told(0.02, negatives=400, n_weighted_negatives=0, expected_false_negative_rate=0.031)
    assert str(line).startswith("false ones expected among the 400 negatives: 3.10%, more than the 2.0% accepted")
    assert "hub_cap" in str(line)
    assert told(0.02, negatives=400, n_weighted_negatives=0, expected_false_negative_rate=0.0201)[1:] == [
        "false ones expected among the 400 negatives: 2.01%"
    ]

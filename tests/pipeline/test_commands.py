"""What a command tells of a stage."""

from pathlib import Path

from pipeline.commands import summary_parts
from pipeline.store import Artifact


def told(**summary: object) -> list[object]:
    return list(summary_parts("compose", Artifact(Path(), {"summary": summary})))


def test_what_is_kept_with_a_weight_is_said_beside_the_share_that_it_raises() -> None:
    plain = told(negatives=4074, weighted=0, false_negatives=0.0198)
    assert plain[1:] == ["false ones expected among the 4,074 negatives: 1.98%"]
    [_, line] = told(negatives=4074, weighted=834, false_negatives=0.0466)
    assert str(line).startswith("false ones expected among the 4,074 negatives: 4.66%; 834 of them the mask would have")
    assert "beyond the share of false ones that is accepted" in str(line)
    assert len(told(negatives=9, weighted=0, false_negatives=None)) == 1

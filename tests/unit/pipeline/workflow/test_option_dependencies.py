"""Parameters that would be ignored are refused; those that count are not."""

from typing import Any

import pytest

from pipeline.workflow.option_dependencies import (
    MINING_STAGES,
    OPTION_DEPENDENCIES,
    find_ignored_options,
)
from stages.core.params import BaseParams
from stages.mining import candidate_features, mask
from stages.mining.sampling import stage as sampling_stage
from stages.mining.verify import stage as verify_stage

MODELS: dict[str, type[BaseParams]] = {
    "features": candidate_features.Params,
    "verify": verify_stage.Params,
    "mask": mask.Params,
    "sample": sampling_stage.Params,
}


def refused(**given: Any) -> dict[str, str]:
    known = {name for model in MODELS.values() for name in model.model_fields}
    assert given.keys() <= known
    params = {
        stage: model(**{name: value for name, value in given.items() if name in model.model_fields})
        for stage, model in MODELS.items()
    }
    return {one.name: one.reason for one in find_ignored_options(params)}


def test_the_table_names_parameters_that_there_are() -> None:
    assert tuple(MODELS) == MINING_STAGES
    known = {name for model in MODELS.values() for name in model.model_fields}
    assert OPTION_DEPENDENCIES.keys() <= known
    assert {other for needs in OPTION_DEPENDENCIES.values() for other in needs} <= known


def test_defaults_need_no_other_option() -> None:
    assert refused() == {}
    assert refused(relabel_min_probability=0.9, max_false_negatives=0.02, mask="perc", verifier="") == {}


@pytest.mark.parametrize(
    ("given", "needs", "says"),
    [
        (
            {"max_false_negatives": 0.01, "mask": "perc"},
            {"mask": "learned"},
            "mask = 'learned' or a verifier or a llm_judge",
        ),
        ({"max_false_negatives": 0.01, "mask": "perc"}, {"verifier": "some/model"}, "a verifier"),
        ({"max_false_negatives": 0.01, "mask": "perc"}, {"llm_judge": "http://localhost:1/v1"}, "a llm_judge"),
        ({"rank_window": (5, 50)}, {"mask": "window"}, "mask = 'window'"),
        ({"relabel_min_probability": 0.8}, {"relabel": "positive"}, "relabel = 'positive'"),
        ({"relabel_min_probability": 0.8, "relabel": "weight"}, {"relabel": "positive"}, "relabel = 'positive'"),
        ({"verifier_budget": 100}, {"verifier": "self"}, "a verifier"),
        ({"verifier_max_length": 128}, {"verifier": "self"}, "a verifier"),
        ({"llm_judge_model": "m"}, {"llm_judge": "http://localhost:1/v1"}, "a llm_judge"),
        ({"llm_judge_budget": 10}, {"llm_judge": "http://localhost:1/v1"}, "a llm_judge"),
    ],
)
def test_an_option_without_its_dependency(given: dict[str, Any], needs: dict[str, Any], says: str) -> None:
    [(name, why)] = refused(**given).items()
    assert name == next(iter(given))
    assert says in why
    assert refused(**given | needs) == {}

"""Parameters that would be ignored are refused; those that count are not."""

from typing import Any

import pytest

from pipeline.workflow.option_dependencies import (
    MINING_STAGES,
    OPTION_DEPENDENCIES,
    OPTIONS_UNUSED_BY_SLICES,
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
    assert {*OPTION_DEPENDENCIES, *OPTIONS_UNUSED_BY_SLICES} <= known
    assert {other for needs in OPTION_DEPENDENCIES.values() for other in needs} <= known


def test_what_nobody_gave_is_not_refused() -> None:
    assert refused() == {}
    for sampling in ("top", "random", "simans", "quota", "slices"):
        assert refused(sampling=sampling) == {}
    assert refused(folds=2, relabel_min_probability=0.9, max_false_negatives=0.02, mask="perc", verifier="") == {}


@pytest.mark.parametrize(
    "given",
    [
        {"mask": "perc"},
        {"relabel": "positive"},
        {"num_negatives": 3},
        {"max_false_negatives": 0.01},
        {"duplicate_similarity": 0.9},
        {"thin_similarity": 2.0},
        {"verifier": "some/model"},
        {"llm_judge": "http://localhost:1/v1", "llm_judge_model": "m"},
        {"estimate_false_negatives": False},
    ],
)
def test_slices_go_by_no_mask(given: dict[str, Any]) -> None:
    found = refused(sampling="slices", slice=4, slices=2, **given)
    assert found.keys() == given.keys()
    assert all("does not count with sampling = 'slices'" in why for why in found.values())
    assert refused(**given) == {}


def test_what_to_leave_it_at_is_said() -> None:
    found = refused(sampling="slices", mask="perc", num_negatives=3)
    assert {name: why.rpartition(": ")[2] for name, why in found.items()} == {
        "num_negatives": "leave it at 7",
        "mask": "leave it at 'learned'",
    }


@pytest.mark.parametrize(
    ("given", "needs", "says"),
    [
        ({"min_answer_chars": 9, "exclude_answers": False}, {"exclude_answers": True}, "exclude_answers = True"),
        (
            {"max_false_negatives": 0.01, "mask": "perc"},
            {"mask": "learned"},
            "mask = 'learned' or a verifier or a llm_judge",
        ),
        ({"max_false_negatives": 0.01, "mask": "perc"}, {"verifier": "some/model"}, "a verifier"),
        ({"max_false_negatives": 0.01, "mask": "perc"}, {"llm_judge": "http://localhost:1/v1"}, "a llm_judge"),
        ({"window_start": 5}, {"mask": "window"}, "mask = 'window'"),
        ({"window_end": 50}, {"mask": "window"}, "mask = 'window'"),
        ({"relabel_min_probability": 0.8}, {"relabel": "positive"}, "relabel = 'positive'"),
        ({"relabel_min_probability": 0.8, "relabel": "weight"}, {"relabel": "positive"}, "relabel = 'positive'"),
        ({"verifier_rule": "margin"}, {"verifier": "some/model"}, "a verifier"),
        ({"verifier_threshold": 0.1}, {"verifier": "some/model", "verifier_rule": "margin"}, "a verifier_rule"),
        ({"verifier_threshold": 0.1, "verifier": "a/b"}, {"verifier_rule": "margin"}, "a verifier_rule"),
        ({"verifier_budget": 100}, {"verifier": "self"}, "a verifier"),
        ({"verifier_max_length": 128}, {"verifier": "self"}, "a verifier"),
        ({"verifier_base": "a/b", "verifier": "c/d"}, {"verifier": "self"}, "verifier = 'self'"),
        ({"folds": 3}, {"verifier": "self"}, "verifier = 'self'"),
        ({"folds": 3, "verifier": "a/b"}, {"verifier": "self"}, "verifier = 'self'"),
        ({"llm_judge_model": "m"}, {"llm_judge": "http://localhost:1/v1"}, "a llm_judge"),
        ({"llm_judge_budget": 10}, {"llm_judge": "http://localhost:1/v1"}, "a llm_judge"),
        ({"simans_a": 100.0}, {"sampling": "simans"}, "sampling = 'simans'"),
        ({"simans_b": 0.1, "sampling": "random"}, {"sampling": "simans"}, "sampling = 'simans'"),
        ({"quota_head": 1}, {"sampling": "quota"}, "sampling = 'quota'"),
        ({"quota_middle": 1}, {"sampling": "quota"}, "sampling = 'quota'"),
        ({"quota_random": 1}, {"sampling": "quota"}, "sampling = 'quota'"),
        ({"slice": 4}, {"sampling": "slices"}, "sampling = 'slices'"),
        ({"slices": 2}, {"sampling": "slices"}, "sampling = 'slices'"),
    ],
)
def test_a_parameter_without_what_it_needs(given: dict[str, Any], needs: dict[str, Any], says: str) -> None:
    [(name, why)] = refused(**given).items()
    assert name == next(iter(given))
    assert says in why
    assert refused(**given | needs) == {}

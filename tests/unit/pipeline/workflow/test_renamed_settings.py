"""An old prep.toml is answered with the new names, all of them at once."""

import json

import pytest

from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.config import list_section_fields, load_settings, read_remembered_settings
from pipeline.workflow.renamed_settings import (
    CHANGED_SETTINGS,
    REMOVED_SETTINGS,
    RENAMED_SETTINGS,
    describe_old_setting,
)
from stages.core.errors import InputError

OLD_SETTINGS = {
    "pairs": """
        tables sql database corpus beir decisions question document answer category group id document_id
        title relevance negatives split value_separator sheet encoding delimiter chunk_words chunk_overlap
        min_chars dev test split_by seed
    """,
    "encode": """
        model query_prompt document_prompt max_length similarity dtype device more_models batch_tokens
    """,
    "mine": """
        depth sources index index_params min_recall seed block search_device search_dtype answers
        min_answer_chars estimate max_false_negatives negatives duplicate_similarity teacher teacher_rule
        teacher_threshold teacher_budget teacher_max_length teacher_base folds judge judge_model
        judge_budget mask threshold window_start window_end relabel above sampling simans_a simans_b
        quota_head quota_middle quota_random quota_sources slice slices same thin_similarity hub_cap
        drop_positives positive_weight audit_rank
    """,
    "train": """
        base loss positives negatives epochs distill_epochs learning_rate batch_size max_length warmup
        weight_decay dropout dtype max_queries dev_queries dev_top_k gradient_checkpointing seed device
    """,
    "evaluate": """
        top_k max_queries samples seed dtype device
    """,
    "refresh": """
        measure confidence samples seed device keep publish_to
    """,
}
"""Every key of prep.toml before the settings were renamed (commit f5b4c1f)."""
OLD_KEYS = [f"{section}.{name}" for section, names in OLD_SETTINGS.items() for name in names.split()]


def test_every_old_setting_still_holds_or_is_answered() -> None:
    assert len(OLD_KEYS) == len(set(OLD_KEYS)) == 115
    kept = {f"{section}.{name}" for section, fields in list_section_fields().items() for name in fields}
    answered = [*RENAMED_SETTINGS, *CHANGED_SETTINGS, *REMOVED_SETTINGS]
    assert len(answered) == len(set(answered))
    assert set(OLD_KEYS) - kept == set(answered)
    assert set(RENAMED_SETTINGS.values()) <= kept


def test_at_most_90_settings_are_left() -> None:
    assert sum(map(len, list_section_fields().values())) <= 90


@pytest.mark.parametrize(
    ("old", "answer"),
    [
        ("mine.depth", "[mine] depth is now [search] top_k"),
        ("train.seed", "[train] seed is now [run] seed"),
        ("pairs.seed", "[pairs] seed is now [pairs] split_seed"),
        ("mine.same", '[mine] same is now [mine] prefer_category: same = "category" is now prefer_category = true'),
        ("mine.simans_b", "[mine] simans_b is gone: SimANS takes 0"),
        ("mine.mask", None),
        ("mine.never", None),
    ],
)
def test_an_answer_names_the_old_and_the_new(old: str, answer: str | None) -> None:
    assert describe_old_setting(*old.split(".")) == answer


def test_old_remembered_settings_are_an_error_too(tmp_path) -> None:  # type: ignore[no-untyped-def]
    workspace = Workspace(tmp_path / "work")
    workspace.root.mkdir()
    path = workspace.root / "settings.json"
    path.write_text(json.dumps({"mine": {"teacher": "a/b", "quota_head": 2}}))
    with pytest.raises(InputError) as refused:
        load_settings(None, workspace)
    assert "[mine] teacher is now [verify] verifier" in str(refused.value)
    assert "[mine] quota_head is gone" in str(refused.value)
    assert f"Delete {path}" in str(refused.value)
    path.unlink()
    assert read_remembered_settings(workspace) == {}

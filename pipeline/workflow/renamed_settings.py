"""What became of the settings of earlier versions, so that an old prep.toml is answered with the new names."""

RENAMED_SETTINGS = {
    "pairs.decisions": "pairs.label_overrides",
    "pairs.negatives": "pairs.negatives_column",
    "pairs.dev": "pairs.dev_ratio",
    "pairs.test": "pairs.test_ratio",
    "pairs.seed": "pairs.split_seed",
    "encode.dtype": "run.dtype",
    "encode.device": "run.device",
    "encode.more_models": "encode.extra_models",
    "mine.depth": "search.top_k",
    "mine.sources": "search.sources",
    "mine.index": "search.faiss_index",
    "mine.index_params": "search.faiss_params",
    "mine.min_recall": "search.min_recall",
    "mine.seed": "run.seed",
    "mine.search_device": "run.device",
    "mine.search_dtype": "run.dtype",
    "mine.answers": "mine.exclude_answers",
    "mine.estimate": "mine.estimate_false_negatives",
    "mine.negatives": "mine.num_negatives",
    "mine.teacher": "verify.verifier",
    "mine.teacher_budget": "verify.verifier_budget",
    "mine.teacher_max_length": "verify.verifier_max_length",
    "mine.judge": "verify.llm_judge",
    "mine.judge_model": "verify.llm_judge_model",
    "mine.judge_budget": "verify.llm_judge_budget",
    "mine.duplicate_similarity": "mine.near_duplicate_similarity",
    "mine.above": "mine.relabel_min_probability",
    "mine.quota_sources": "mine.source_quotas",
    "train.positives": "train.num_positives",
    "train.negatives": "train.num_negatives",
    "train.warmup": "train.warmup_ratio",
    "train.dtype": "run.dtype",
    "train.dev_queries": "train.max_dev_queries",
    "train.seed": "run.seed",
    "train.device": "run.device",
    "evaluate.samples": "evaluate.bootstrap_samples",
    "evaluate.seed": "run.seed",
    "evaluate.dtype": "run.dtype",
    "evaluate.device": "run.device",
    "refresh.measure": "refresh.metric",
    "refresh.samples": "evaluate.bootstrap_samples",
    "refresh.seed": "run.seed",
    "refresh.device": "run.device",
}
"""Old "section.key" -> the new one, with the same values."""

CHANGED_SETTINGS = {
    "mine.same": '[mine] prefer_category: same = "category" is now prefer_category = true',
    "mine.thin_similarity": "[mine] near_duplicate_similarity, one value for positives and negatives",
    "mine.window_start": "[mine] rank_window, whose first number it is: rank_window = [10, 210]",
    "mine.window_end": "[mine] rank_window, whose second number it is: rank_window = [10, 210]",
}
"""Old "section.key" -> the new one, and how its values changed."""

REMOVED_SETTINGS = {
    "pairs.min_chars": "questions and documents of one character are rejected, unless it is Chinese or Japanese",
    "mine.block": "32,768 documents are searched at once",
    "mine.min_answer_chars": "answers of fewer than 4 characters are not looked for",
    "mine.teacher_rule": "a verifier's scores change the probability that a candidate is a false negative, and no more",
    "mine.teacher_threshold": "it was the number of teacher_rule, which is gone",
    "mine.teacher_base": "a self-trained verifier starts from the default encoder",
    "mine.folds": "a self-trained verifier has 2 folds",
    "mine.simans_a": "SimANS takes 100, which suits cosines",
    "mine.simans_b": "SimANS takes 0",
    "mine.quota_head": "sampling = quota is gone; take top, random or simans",
    "mine.quota_middle": "sampling = quota is gone; take top, random or simans",
    "mine.quota_random": "sampling = quota is gone; take top, random or simans",
    "mine.slice": "sampling = slices is gone; take top, random or simans",
    "mine.slices": "sampling = slices is gone; take top, random or simans",
    "mine.audit_rank": "the audit lists positives that are ranked beyond 100",
}
"""Old "section.key" -> what holds in its place."""


def describe_old_setting(section: str, name: str) -> str | None:
    """What became of a setting of an earlier version; None for one that there never was."""
    old = f"{section}.{name}"
    if new := RENAMED_SETTINGS.get(old):
        new_section, new_name = new.split(".")
        return f"[{section}] {name} is now [{new_section}] {new_name}"
    if old in CHANGED_SETTINGS:
        return f"[{section}] {name} is now {CHANGED_SETTINGS[old]}"
    return f"[{section}] {name} is gone: {REMOVED_SETTINGS[old]}" if old in REMOVED_SETTINGS else None

"""The verify step: update p_false_negative of uncertain candidates by a verifier, an LLM judge, or both.

The verifier (a cross-encoder, or rerankers cross-fitted on the table itself) scores the candidates with an uncertain p.
The LLM judge reads those whose label has the highest value. verifier_scores.parquet holds the scores, the LLM's labels
and the updated p, which the mask uses. It is empty if neither is set, or if the estimate is not reliable on this table.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl

from stages.core import schemas
from stages.core.arrays import Floats
from stages.core.context import StageContext, Summary
from stages.core.errors import InputError
from stages.core.hashing import sample_by_hash
from stages.core.model_files import model_digest, resolve_model
from stages.core.schemas import PAIR_COLUMNS, scan_documents
from stages.mining.estimator.holdout import hold_out_one
from stages.mining.params import RiskPolicy
from stages.mining.verify.params import SELF_TRAINED, SELF_TRAINED_BASE, SELF_TRAINED_FOLDS, SELF_TRAINED_MAX_QUERIES
from stages.mining.verify.params import Params as Params
from stages.mining.verify.selection import VerifyInputs

if TYPE_CHECKING:
    from stages.mining.verify.cross_encoder import CrossEncoderVerifier

VERSION = 3

P_JUDGED_RELEVANT, P_JUDGED_NOT_RELEVANT = 0.98, 0.01
"""p_false_negative after the LLM judge's verdict; not 1 and 0, because an LLM makes errors."""


def key_extras(params: Params) -> dict[str, str]:
    """The weights of the verifier (or of its base model), the LLM judge, and the risk policy if either is set."""
    extras = {"llm_judge": "enabled"} if params.llm_judge else {}
    if params.verifier == SELF_TRAINED:
        extras["verifier"] = f"self: {model_digest(resolve_model(SELF_TRAINED_BASE))}"
        extras["seed"] = str(params.seed)
    elif params.verifier:
        extras["verifier"] = model_digest(resolve_model(params.verifier))
    if params.verifier:
        extras["dtype"] = params.dtype
    return extras | ({name: str(getattr(params, name)) for name in RiskPolicy.model_fields} if extras else {})


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write verifier_scores.parquet, with a row for each pair that was read, and holdout_verified.parquet."""
    estimator = json.loads(inputs["estimator"].read_text(encoding="utf-8"))
    holdout = schemas.read_table(inputs["holdout_candidates"], schemas.HOLDOUT_CANDIDATES)
    summary: Summary = {}
    verifier_scores = pl.DataFrame(pl.from_arrow(schemas.VERIFIER_SCORES.empty_table()))
    verifier_names = " nor ".join(
        name for name, given in (("verifier", params.verifier), ("LLM judge", params.llm_judge)) if given
    )
    if verifier_names and estimator["source"] is None:
        reason = estimator["unreliable_reason"]
        raise InputError(f"a verifier or an LLM judge needs p_false_negative, and there is none: {reason}")
    if verifier_names and estimator["unreliable_reason"]:
        # not an error: whether the estimate is reliable may change with each refresh
        context.progress.log(
            f"no {verifier_names} is used: the estimate of false negatives is not reliable here, since "
            f"{estimator['unreliable_reason']}"
        )
        summary["skipped_reason"] = estimator["unreliable_reason"]
    elif verifier_names:
        verify_inputs = VerifyInputs(inputs, context)
        rows = verify_inputs.select_for_verification(params).with_columns(llm_judge=pl.lit(None, pl.Boolean))
        if params.verifier:
            rows, holdout, verifier_scores, summary["verifier"] = apply_verifier(params, rows, holdout, verify_inputs)
        if params.llm_judge:
            rows, summary["llm_judge"] = apply_llm_judge(params, rows, verify_inputs)
            if summary["llm_judge"]["failed"]:  # the next run tries again
                summary["complete"] = False
        verifier_scores = build_verifier_scores(rows, verifier_scores)
    schemas.write_table(verifier_scores, schemas.VERIFIER_SCORES, out / "verifier_scores.parquet")
    schemas.write_table(holdout, schemas.HOLDOUT_CANDIDATES, out / "holdout_verified.parquet")
    return {"n_pairs": verifier_scores.height, **summary}


class PairScorer(Protocol):
    """Scores pairs: `_SingleModelScorer` or `cross_fitting.CrossFitReranker`."""

    @property
    def counts(self) -> dict[str, int]:
        """Distinct pairs: scored now, and cached."""

    def score_pairs(self, query_ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Floats:
        """The logit of each pair."""


def apply_verifier(
    params: Params, rows: pl.DataFrame, holdout: pl.DataFrame, verify_inputs: VerifyInputs
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, Summary]:
    """`rows` and `holdout` with the p updated by the verifier, its score of each pair, and a summary."""
    from stages.mining.verify import cross_encoder, stacking

    p = rows["p_false_negative"].to_numpy()
    uncertain = rows.filter(
        pl.Series(
            cross_encoder.select_uncertain(
                p, max_candidates=params.verifier_budget, threshold=rows["threshold"].to_numpy()
            ),
            dtype=pl.Boolean,
        )
    )
    uncertain_holdout = holdout.filter(
        pl.Series(cross_encoder.select_uncertain(holdout["p_false_negative"].to_numpy()), dtype=pl.Boolean)
    )
    scorer, reason = create_scorer(params, verify_inputs)
    if scorer is None:
        verify_inputs.context.progress.log(f"the verifier is not used: {reason}")
        return rows, holdout, rows.head(0), {"is_used": False, "reason": reason}
    pairs = cross_encoder.collect_pairs_to_score(
        pl.concat([uncertain.select(PAIR_COLUMNS), uncertain_holdout.select(PAIR_COLUMNS)]), verify_inputs.positives
    )
    scored = pairs.with_columns(
        verifier_score=pl.Series(
            scorer.score_pairs(pairs["query_id"].to_list(), verify_inputs.read_pair_texts(pairs)), dtype=pl.Float32
        )
    )
    # score differences are taken from the positives of each fold that are not held out
    scored_folds = [
        cross_encoder.join_verifier_scores(
            fold_rows,
            hold_out_one(verify_inputs.positives, int(fold_rows["fold"][0]))
            .filter(~pl.col("held_out"))
            .select(PAIR_COLUMNS),
            scored,
        )
        for fold_rows in uncertain_holdout.partition_by("fold", maintain_order=True)
    ]
    stacking_rows = (
        pl.concat(scored_folds)
        if scored_folds
        else cross_encoder.join_verifier_scores(uncertain_holdout, verify_inputs.positives, scored)
    )
    labels, weights = stacking_rows["held_out"].to_numpy(), stacking_rows["weight"].to_numpy()
    stacked_model = stacking.fit_stacked_model(
        *extract_score_arrays(stacking_rows), labels, weights, verify_inputs.compute_match_keys(stacking_rows)
    )
    scored_rows = cross_encoder.join_verifier_scores(rows, verify_inputs.positives, scored)
    p_before, score, positive_min, positive_max = extract_score_arrays(scored_rows)
    is_used, reason = bool(stacked_model.models), stacked_model.reason
    if is_used:
        p_after = stacked_model.predict_probability(
            p_before, score, positive_min, positive_max, verify_inputs.compute_match_keys(scored_rows)
        )
        holdout_p = stacked_model.predict_probability(
            *extract_score_arrays(stacking_rows), verify_inputs.compute_match_keys(stacking_rows)
        )
        new_p = stacking_rows.select(*PAIR_COLUMNS, "fold").with_columns(new_p=pl.Series(holdout_p, dtype=pl.Float32))
        holdout = holdout.join(new_p, on=[*PAIR_COLUMNS, "fold"], how="left", maintain_order="left")
        holdout = holdout.with_columns(p_false_negative=pl.coalesce("new_p", "p_false_negative")).drop("new_p")
    elif params.verifier != SELF_TRAINED and "auc_estimator" not in stacked_model.metrics:
        p_after = stacking.raise_only(p_before, score, positive_max)
        reason = f"{reason}; it only raises the probability of documents that it prefers to the positive"
    else:
        p_after = p_before
    verify_inputs.context.progress.log(f"verifier: {reason}")
    rows = rows.with_columns(p_false_negative=pl.Series(p_after, dtype=pl.Float32))
    positive_range = scored_rows.select(*PAIR_COLUMNS, "verifier_positive_min", "verifier_positive_max")
    verifier_scores = scored.join(positive_range, on=PAIR_COLUMNS, how="left", maintain_order="left")
    return (
        rows,
        holdout,
        verifier_scores,
        {"is_used": is_used, "reason": reason, **scorer.counts, **stacked_model.metrics},
    )


def extract_score_arrays(scored_rows: pl.DataFrame) -> tuple[Floats, Floats, Floats, Floats]:
    """p, and the verifier's logits of the candidate and of its query's lowest and best positive [n]; NaN if unknown."""
    names = ("p_false_negative", "verifier_score", "verifier_positive_min", "verifier_positive_max")
    p, score, positive_min, positive_max = (
        scored_rows[name].cast(pl.Float32).fill_null(float("nan")).to_numpy() for name in names
    )
    return p, score, positive_min, positive_max


def create_scorer(params: Params, verify_inputs: VerifyInputs) -> tuple[PairScorer | None, str]:
    """The verifier, or None and the reason."""
    from stages.mining.verify.cross_encoder import MIN_UNCERTAIN_P, CrossEncoderVerifier
    from stages.training.params import Params as TrainParams

    assert params.verifier
    cache_folder = verify_inputs.context.scores_dir
    if params.verifier != SELF_TRAINED:
        context = verify_inputs.context
        verifier = CrossEncoderVerifier(
            params.verifier,
            cache_folder,
            params.device,
            params.verifier_max_length,
            params.dtype,
            context.progress,
            context.executor,
        )
        return _SingleModelScorer(verifier), ""
    from stages.mining.verify.cross_fitting import CrossFitReranker, TrainingSet, build_training_queries

    candidate_features = schemas.scan_table(verify_inputs.paths["features"], schemas.CANDIDATE_FEATURES)
    train_queries = verify_inputs.queries.filter(pl.col("split") == "train")
    sampled_ids = sample_by_hash(train_queries["query_id"], SELF_TRAINED_FOLDS * SELF_TRAINED_MAX_QUERIES, "self")
    train_queries = train_queries.filter(pl.col("query_id").is_in(sampled_ids))
    is_known_positive = pl.any_horizontal(pl.col(flag).fill_null(False) for flag in ("same_text", "contains_answer"))
    safe_candidates = candidate_features.filter(
        (pl.col("p_false_negative") <= MIN_UNCERTAIN_P) & pl.col("positive_kind").is_null() & ~is_known_positive
    )
    candidates = safe_candidates.select(*PAIR_COLUMNS, "score", "p_false_negative").filter(
        pl.col("query_id").is_in(train_queries["query_id"].implode())
    )
    train_params = TrainParams(
        base=SELF_TRAINED_BASE,
        epochs=1,
        max_length=params.verifier_max_length,
        max_queries=SELF_TRAINED_MAX_QUERIES,
        seed=params.seed,
        device=params.device,
        dtype=params.dtype,
    )
    training_queries = build_training_queries(train_queries, candidates.collect(), verify_inputs.positives, params.seed)
    doc_ids = pl.Series(
        [d for query in training_queries for d in (*query.positives, *query.negatives)], dtype=pl.String
    ).unique()
    documents = (
        scan_documents(verify_inputs.paths["corpus"]).filter(pl.col("doc_id").is_in(doc_ids.implode())).collect()
    )
    training_set = TrainingSet(
        training_queries,
        dict(documents.iter_rows()),
        dict(verify_inputs.queries.select("query_id", "group").iter_rows()),
    )
    files = verify_inputs.paths["candidates"], verify_inputs.paths["corpus"]
    reranker = CrossFitReranker(
        train_params,
        SELF_TRAINED_FOLDS,
        training_set,
        *files,
        verify_inputs.context.scratch_dir / "self",
        cache_folder,
        verify_inputs.context,
    )
    return (None, reranker.skip_reason) if reranker.skip_reason else (reranker, "")


@dataclass
class _SingleModelScorer:
    """One model that scores the pairs of all queries."""

    verifier: "CrossEncoderVerifier"

    @property
    def counts(self) -> dict[str, int]:
        return self.verifier.counts

    def score_pairs(self, query_ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Floats:
        return self.verifier.score_pairs(pairs)


def apply_llm_judge(params: Params, rows: pl.DataFrame, verify_inputs: VerifyInputs) -> tuple[pl.DataFrame, Summary]:
    """`rows` with the LLM judge's labels and the updated p, and a summary."""
    from stages.mining.verify.label_value import sort_by_label_value
    from stages.mining.verify.llm_judge import LLMJudge

    judge = LLMJudge(
        params.llm_judge or "",
        params.llm_judge_model or "",
        verify_inputs.context.scores_dir / "llm_judge.jsonl",
        verify_inputs.context.progress,
    )
    selected = sort_by_label_value(rows).head(params.llm_judge_budget)
    # cached pairs count too, so that the result does not depend on the cache
    verdicts = judge.judge_pairs(verify_inputs.read_pair_texts(selected))
    answered = pl.Series("llm_judge", verdicts == 1, dtype=pl.Boolean).to_frame()
    found = selected.select(PAIR_COLUMNS).hstack(answered).filter(pl.Series(~np.isnan(verdicts), dtype=pl.Boolean))
    rows = rows.drop("llm_judge").join(found, on=PAIR_COLUMNS, how="left", maintain_order="left")
    judged_p = (
        pl.when("llm_judge")
        .then(pl.lit(P_JUDGED_RELEVANT, pl.Float32))
        .when(~pl.col("llm_judge"))
        .then(pl.lit(P_JUDGED_NOT_RELEVANT, pl.Float32))
    )
    return rows.with_columns(p_false_negative=pl.coalesce(judged_p, "p_false_negative")), judge.summary


def build_verifier_scores(rows: pl.DataFrame, verifier_scores: pl.DataFrame) -> pl.DataFrame:
    """VERIFIER_SCORES: each pair that the verifier or the LLM judge read, with the updated p of `rows`.

    The p of a positive, which the verifier scores too, is null.
    """
    updates = rows.select(*PAIR_COLUMNS, "p_false_negative", "llm_judge")
    judged = updates.filter(pl.col("llm_judge").is_not_null())
    if verifier_scores.is_empty():
        return judged
    verifier_scores = pl.concat(
        [verifier_scores, judged.select(PAIR_COLUMNS).join(verifier_scores, on=PAIR_COLUMNS, how="anti")],
        how="diagonal",
    )
    return verifier_scores.join(updates, on=PAIR_COLUMNS, how="left", maintain_order="left").sort(PAIR_COLUMNS)

"""Verify: a second opinion, asked only where the first one is unsure and only on what training may meet.

A teacher (a cross-encoder, or rerankers cross-fitted on the table itself) reads the candidates in the band where
p_false_negative decides little; a judge (an LLM) reads those whose verdict would change most. What they said stands in
verified.parquet, beside the p that follows from it; the mask goes by that p. Without either, nothing is asked; nor
where the estimate can't be trusted on this table, which is said.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import polars as pl

from stages.core import schemas
from stages.core.errors import InputError
from stages.core.hashing import draw
from stages.core.model_files import DEFAULT_ENCODER, model_digest, resolve_model
from stages.core.params import option
from stages.core.schemas import Summary, Tools, scan_documents
from stages.mining.estimator.holdout import hide_one
from stages.mining.risk_budget import Floats, Limits
from stages.mining.verify.selection import PAIR, Scene

if TYPE_CHECKING:
    from stages.mining.verify.cross_encoder import Teacher

VERSION = 2

SAID = {"teacher_score": pl.Float32, "teacher_false": pl.Boolean, "judge": pl.Boolean}
"""What a teacher and a judge say of a pair."""

SELF = "self"
SELF_QUERIES = 2_000
"""Questions that a fold of a self-taught teacher learns from at most."""
RELEVANT, NOT_RELEVANT = 0.98, 0.01
"""p_false_negative after a judge's verdict: it errs now and then."""


class Params(Limits):
    """Who is asked for a second opinion."""

    # the weights enter the key through `identity`
    teacher: str | None = option(
        None,
        "Cross-encoder that reads the candidates in doubt, by folder or Hugging Face id; self: small rerankers trained "
        "on this table, each for the questions that it did not see. In doubt is what the learned mask might emit. Left "
        "out: none.",
        model=True,
        unkeyed=True,
    )
    teacher_rule: Literal["none", "margin", "margin_max", "perc", "perc_max", "abs"] = option(
        "none",
        "Sets aside what the teacher itself takes for a positive, by the rule of that name on its scores (margin: "
        "logits; perc, abs: their sigmoid). Without it, its scores only enter p_false_negative.",
    )
    teacher_threshold: float | None = option(
        None, "The teacher_rule's number; left out: margin 0, perc 0.95, abs 0.7.", allow_inf_nan=False
    )
    teacher_budget: int = option(
        0, "Candidates that a teacher may be asked about, nearest to doubt first; 0: all.", ge=0
    )
    teacher_max_length: int = option(256, "Tokens of query and document together that a teacher reads.", ge=8)
    teacher_base: str = option(
        DEFAULT_ENCODER, "With teacher = self: the model that these rerankers start from.", model=True, unkeyed=True
    )
    folds: int = option(
        2, "With teacher = self: so many rerankers, each scores one part and learns from the others.", ge=2
    )
    judge: str | None = option(
        None, "URL of an OpenAI-compatible API that is asked about candidates, such as http://localhost:8000/v1.",
        unkeyed=True,
    )  # fmt: skip
    judge_model: str | None = option(None, "Name of the model behind judge.")
    judge_budget: int = option(
        1000, "Pairs that the judge is asked about, those whose verdict changes most; each is paid for once.",
        ge=1,
    )  # fmt: skip

    @classmethod
    def marked(cls, mark: str) -> set[str]:
        """The limits enter the key through `identity` too: where nobody is asked, they shape nothing here."""
        return super().marked(mark) | (set(Limits.model_fields) if mark == "unkeyed" else set())


def identity(params: Params) -> dict[str, str]:
    """Who is asked (the weights of the teacher, or of what it starts from), and within what limits."""
    found = {"judge": "asked"} if params.judge else {}
    if params.teacher == SELF:
        found["teacher"] = f"self: {model_digest(resolve_model(params.teacher_base))}"
    elif params.teacher:
        found["teacher"] = model_digest(resolve_model(params.teacher))
    return found | ({name: str(getattr(params, name)) for name in Limits.model_fields} if found else {})


def run(params: Params, inputs: Mapping[str, Path], out: Path, tools: Tools) -> Summary:
    """Write verified.parquet, a row for each pair that somebody read, and taught.parquet with the p that follows."""
    estimator = json.loads(inputs["estimator"].read_text(encoding="utf-8"))
    taught = schemas.read_table(inputs["shown"], schemas.TAUGHT)
    said: Summary = {}
    verified = pl.DataFrame(pl.from_arrow(schemas.VERIFIED.empty_table()))
    wanted = " nor ".join(who for who in ("teacher", "judge") if getattr(params, who))
    if wanted and estimator["source"] is None:
        why = estimator["unfit"]
        raise InputError(f"a teacher or a judge is asked where p_false_negative is unsure, and there is none: {why}")
    if wanted and estimator["unfit"]:
        # no contradiction in what the person set: a table may come to this, or leave it, from one refresh to the next
        tools.progress.say(f"no {wanted} is asked, since it can't be told what is in doubt: {estimator['unfit']}")
        said["unasked"] = estimator["unfit"]
    elif wanted:
        scene = Scene(inputs, tools)
        rows = scene.doubtful(params).with_columns(judge=pl.lit(None, pl.Boolean))
        if params.teacher:
            rows, taught, verified, said["teacher"] = taught_by(params, rows, taught, scene)
        if params.judge:
            rows, said["judge"] = judged_by(params, rows, scene)
        verified = told(rows, verified)
    schemas.write_table(verified, schemas.VERIFIED, out / "verified.parquet")
    schemas.write_table(taught, schemas.TAUGHT, out / "taught.parquet")
    return {"pairs": verified.height, **said}


def intact(inputs: Mapping[str, Path], out: Path, tools: Tools) -> bool:
    """Has the judge answered whatever it was asked? Where not, it is asked again in the next run."""
    summary = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["summary"]
    return not summary.get("judge", {}).get("failed")


def heard(evidence: pl.LazyFrame, verified: pl.LazyFrame) -> pl.LazyFrame:
    """`evidence` with teacher_score, teacher_false and judge, and p_false_negative as it is after these."""
    if verified.head(1).collect().is_empty():  # a join with nothing takes longer than to read the evidence
        return evidence.with_columns(pl.lit(None, kind).alias(name) for name, kind in SAID.items())
    told = verified.select(*PAIR, *SAID, after="p_false_negative")
    rows = evidence.join(told, on=PAIR, how="left", maintain_order="left")
    return rows.with_columns(p_false_negative=pl.coalesce("after", "p_false_negative")).drop("after")


class Reader(Protocol):
    """Who scores pairs: `teacher.Teacher` and `crossfit.Cross` behind one face."""

    @property
    def counts(self) -> dict[str, int]:
        """Distinct pairs: scored now, and cached."""

    def scores(self, query_ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Floats:
        """The logit of each pair."""


def taught_by(
    params: Params, rows: pl.DataFrame, taught: pl.DataFrame, scene: Scene
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, Summary]:
    """`rows` and `taught` with p after the teacher, what it said of each pair, and how it did."""
    from stages.mining.verify import cross_encoder as teacher
    from stages.mining.verify import stacking

    p = rows["p_false_negative"].to_numpy()
    unsure = rows.filter(
        pl.Series(teacher.band(p, most=params.teacher_budget, near=rows["threshold"].to_numpy()), dtype=pl.Boolean)
    )
    shown = taught.filter(pl.Series(teacher.band(taught["p_false_negative"].to_numpy()), dtype=pl.Boolean))
    reader, why = reading(params, scene)
    if reader is None:
        scene.tools.progress.say(f"no teacher is asked: {why}")
        return rows, taught, rows.head(0), {"heard": False, "why": why}
    pairs = teacher.asked(pl.concat([unsure.select(PAIR), shown.select(PAIR)]), scene.positives)
    scored = pairs.with_columns(
        teacher_score=pl.Series(reader.scores(pairs["query_id"].to_list(), scene.texts(pairs)), dtype=pl.Float32)
    )
    # what is hidden from the estimate is no positive to measure from, be it among the rows or not
    turns = [
        teacher.measured(rows_of, hide_one(scene.positives, turn).filter(~pl.col("hidden")).select(PAIR), scored)
        for turn, rows_of in ((int(part["turn"][0]), part) for part in shown.partition_by("turn", maintain_order=True))
    ]
    learned_from = pl.concat(turns) if turns else teacher.measured(shown, scene.positives, scored)
    labels, weights = learned_from["hidden"].to_numpy(), learned_from["weight"].to_numpy()
    verdict = stacking.fit(*figures(learned_from), labels, weights, scene.forms(learned_from))
    measured = teacher.measured(rows, scene.positives, scored)
    before, score, lowest, best = figures(measured)
    listened, why = bool(verdict.models), verdict.why
    if listened:
        after = verdict.probability(before, score, lowest, best, scene.forms(measured))
        mine = verdict.probability(*figures(learned_from), scene.forms(learned_from))
        told = learned_from.select(*PAIR, "turn").with_columns(after=pl.Series(mine, dtype=pl.Float32))
        taught = taught.join(told, on=[*PAIR, "turn"], how="left", maintain_order="left")
        taught = taught.with_columns(p_false_negative=pl.coalesce("after", "p_false_negative")).drop("after")
    elif params.teacher != SELF and "auc_p" not in verdict.figures:
        after = stacking.raised(before, score, best)
        why = f"{why}; what it prefers to the positive is taken for a positive, nothing else hangs on it"
    else:
        after = before
    scene.tools.progress.say(f"teacher: {why}")
    wrong = np.zeros(len(measured), np.bool_)
    if params.teacher_rule != "none":
        wrong = teacher.teacher_false(params.teacher_rule, params.teacher_threshold, score, lowest, best)
    rows = rows.with_columns(p_false_negative=pl.Series(after, dtype=pl.Float32))
    marks = measured.select(*PAIR, "teacher_lowest", "teacher_best", teacher_false=pl.Series(wrong, dtype=pl.Boolean))
    read = scored.join(marks, on=PAIR, how="left", maintain_order="left")
    return rows, taught, read, {"heard": listened, "why": why, **reader.counts, **verdict.figures}


def figures(measured: pl.DataFrame) -> tuple[Floats, Floats, Floats, Floats]:
    """p and the teacher's logits of a candidate and of its query's lowest and best positive [n]; NaN where unknown."""
    names = ("p_false_negative", "teacher_score", "teacher_lowest", "teacher_best")
    p, score, lowest, best = (measured[name].cast(pl.Float32).fill_null(float("nan")).to_numpy() for name in names)
    return p, score, lowest, best


def reading(params: Params, scene: Scene) -> tuple[Reader | None, str]:
    """The teacher, or why there is none."""
    from stages.mining.verify.cross_encoder import LOW, Teacher
    from stages.training import stage as training_stage

    assert params.teacher
    cache = scene.tools.scores
    if params.teacher != SELF:
        tools = scene.tools
        found = Teacher(params.teacher, cache, "auto", params.teacher_max_length, "auto", tools.progress, tools.engine)
        return _Alone(found), ""
    from stages.mining.verify.cross_fitting import Cross, Material, lessons

    evidence = schemas.scan_table(scene.inputs["evidence"], schemas.EVIDENCE)
    asked = scene.queries.filter(pl.col("split") == "train")
    drawn = sorted(asked["query_id"].to_list(), key=lambda query: (draw(0, "self", query), query))
    asked = asked.filter(pl.col("query_id").is_in(drawn[: params.folds * SELF_QUERIES]))
    known = pl.any_horizontal(pl.col(flag).fill_null(False) for flag in ("same_text", "contains_answer"))
    safe = evidence.filter((pl.col("p_false_negative") <= LOW) & pl.col("own").is_null() & ~known)
    candidates = safe.select(*PAIR, "score", "p_false_negative").filter(
        pl.col("query_id").is_in(asked["query_id"].implode())
    )
    given = training_stage.Params(
        base=params.teacher_base, epochs=1, max_length=params.teacher_max_length, max_queries=SELF_QUERIES
    )
    mined = lessons(asked, candidates.collect(), scene.positives, given.seed)
    wanted = pl.Series([d for query in mined for d in (*query.positives, *query.negatives)], dtype=pl.String).unique()
    documents = scan_documents(scene.inputs["corpus"]).filter(pl.col("doc_id").is_in(wanted.implode())).collect()
    material = Material(mined, dict(documents.iter_rows()), dict(scene.queries.select("query_id", "group").iter_rows()))
    files = scene.inputs["candidates"], scene.inputs["corpus"]
    cross = Cross(given, params.folds, material, *files, scene.tools.scratch / "self", cache, scene.tools)
    return (None, cross.unfit) if cross.unfit else (cross, "")


@dataclass
class _Alone:
    """A teacher that scores all questions alike."""

    teacher: "Teacher"

    @property
    def counts(self) -> dict[str, int]:
        return self.teacher.counts

    def scores(self, query_ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Floats:
        return self.teacher.scores(pairs)


def judged_by(params: Params, rows: pl.DataFrame, scene: Scene) -> tuple[pl.DataFrame, Summary]:
    """`rows` with judge, and p after its verdicts, where it was asked; and what that took."""
    from stages.mining.verify.label_value import by_worth
    from stages.mining.verify.llm_judge import Judge

    judge = Judge(
        params.judge or "",
        params.judge_model or "",
        scene.tools.scores / "judge.jsonl",
        scene.tools.progress,
    )
    order = by_worth(rows).head(params.judge_budget)
    # the first N, asked before or not: so the result does not hang on what this workspace has seen
    verdicts = judge.verdicts(scene.texts(order))
    answered = pl.Series("judge", verdicts == 1, dtype=pl.Boolean).to_frame()
    found = order.select(PAIR).hstack(answered).filter(pl.Series(~np.isnan(verdicts), dtype=pl.Boolean))
    rows = rows.drop("judge").join(found, on=PAIR, how="left", maintain_order="left")
    sure = (
        pl.when("judge")
        .then(pl.lit(RELEVANT, pl.Float32))
        .when(~pl.col("judge"))
        .then(pl.lit(NOT_RELEVANT, pl.Float32))
    )
    return rows.with_columns(p_false_negative=pl.coalesce(sure, "p_false_negative")), judge.summary


def told(rows: pl.DataFrame, read: pl.DataFrame) -> pl.DataFrame:
    """VERIFIED: every pair that a teacher `read` or a judge decided, with the p of `rows` after both; that of a
    positive, which a teacher reads too, is null."""
    after = rows.select(*PAIR, "p_false_negative", "judge")
    asked = after.filter(pl.col("judge").is_not_null())
    if read.is_empty():
        return asked
    read = pl.concat([read, asked.select(PAIR).join(read, on=PAIR, how="anti")], how="diagonal")
    return read.join(after, on=PAIR, how="left", maintain_order="left").sort(PAIR)

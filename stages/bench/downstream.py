"""Bench of what negatives do to a reranker: the same small student under each rule, on questions that it never saw.

The questions of a judged collection are split as `prep build-pairs` splits them. On the train side half of each
question's positives are hidden (as `stages.bench.leak` does it) and negatives are mined under each rule; on the
test side all judgements count. Everything but the negatives is the same for all rules: questions, positives, number of
pairs and steps, seeds, and each seed's new head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import field_validator

from stages.bench import leak
from stages.bench.leak import FIXED, Mined
from stages.bench.split import Trial, drawn_ids
from stages.core.device import Device
from stages.core.errors import InputError
from stages.core.model_files import DEFAULT_ENCODER, resolve_model
from stages.core.params import Params as BaseParams
from stages.core.params import option
from stages.core.schemas import Tools
from stages.evaluation.bootstrap import compare
from stages.evaluation.candidate_lists import Fixed
from stages.evaluation.fusion import DEFAULT_WEIGHT, fuse
from stages.evaluation.metrics import Judge
from stages.mining import risk_budget
from stages.mining.risk_budget import Bools, Doubles, Lists
from stages.reranking.cross_encoder import Pair
from stages.training import examples
from stages.training import stage as training_stage
from stages.training.distillation import lessons
from stages.training.examples import Group, epoch_groups

if TYPE_CHECKING:
    from stages.training.trainer import History

VERSION = 1

ORACLE, LEARNED, AS_HARD = "oracle", "learned", "learned as hard"
RULES = (*FIXED, LEARNED, AS_HARD, ORACLE)
REFERENCE = "perc_max 0.9"
"""The rule whose hardness `AS_HARD` takes."""
METRICS = ("nDCG@10", "MRR@10")
FUSED = tuple(f"fused {name}" for name in METRICS)


class Params(BaseParams):
    """What `prep bench downstream` is told."""

    rule: tuple[str, ...] = option(
        ("naive", "perc 0.95", REFERENCE, LEARNED, ORACLE),
        f"a rule to compare; again for each. {', '.join(FIXED)}: fixed ones; {LEARNED}: the learned mask within "
        f"--max-false-negatives; {AS_HARD}: the learned mask at the hardness of {REFERENCE}; {ORACLE}: what is hidden "
        "is never taken. A question that one of them can't fill is left out for all",
    )
    encoder: str = option(DEFAULT_ENCODER, "the retriever whose candidates are mined, and reranked in test", model=True)
    student: str = option(
        DEFAULT_ENCODER, "model to train: a cross-encoder, or an encoder, whose body gets a new head", model=True
    )
    train_queries: int = option(200, "questions to train on, drawn by hash", ge=2)
    test_queries: int = option(150, "questions to test on, drawn by hash; 0: all", ge=0)
    negatives: int = option(5, "negatives a question, beside one positive", ge=1)
    max_false_negatives: float = option(0.02, f"{LEARNED}: the accepted share of false negatives", gt=0, lt=1)
    top_k: int = option(20, "the retriever's best documents of each test question, which are reranked", ge=1)
    epochs: int = option(2, "times that every question is seen", ge=1)
    distill_epochs: int = option(
        0, "epochs before those, in which the student learns the retriever's scores; the same for all rules", ge=0
    )
    seeds: int = option(3, "trainings under each rule, each with another head and other draws", ge=1)
    batch_size: int = option(8, "groups a step", ge=1)
    learning_rate: float | None = option(None, "peak learning rate. Left out: as [train] has it", gt=0, lt=1)
    max_length: int = option(128, "tokens of question and document together", ge=8)
    seed: int = option(0, "seed of the split, of what is hidden and of the bootstrap", ge=0, lt=2**32)
    samples: int = option(2000, "bootstrap samples behind each interval", ge=100)
    device: Device = option("auto", "where to train: cpu, cuda:0, ...; auto: a GPU where there is one", unkeyed=True)

    @field_validator("rule")
    @classmethod
    def _known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [rule for rule in given if rule not in RULES]:
            raise ValueError(f"there is no rule {unknown[0]!r}; there are {', '.join(RULES)}")
        return tuple(dict.fromkeys(given))

    def training(self, seed: int) -> training_stage.Params:
        """How the student of one seed is trained."""
        return training_stage.Params(
            base=self.student,
            negatives=self.negatives,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            max_length=self.max_length,
            distill_epochs=self.distill_epochs,
            seed=seed,
            device=self.device,
        )


def take(mined: Mined, rule: str, share: float) -> Bools:
    """The negatives [q, width] that `rule` takes; `share` is what `LEARNED` accepts."""
    if rule in FIXED:
        return leak.emitted(mined, FIXED[rule])
    if rule == ORACLE:
        return risk_budget.choose(replace(mined.lists, open=mined.lists.open & ~mined.hidden), 0.0)
    if rule == AS_HARD:
        hardness = leak.figures(mined, leak.emitted(mined, FIXED[REFERENCE]))["hardness"]
        return risk_budget.choose(mined.lists, leak.price_at(mined, hardness or 0.0))
    return leak.within(mined, [share])[0][1]


def settle(mined: Mined, rules: Sequence[str], share: float) -> tuple[Bools, dict[str, Bools]]:
    """Which questions [q] every rule fills, and what each takes of these [kept, width].

    The learned mask's price is settled on the questions that are kept, so that its budget and hardness are theirs.
    """
    kept = np.ones(len(mined.lists.room), np.bool_)
    while True:
        part = some(mined, kept)
        taken = {rule: take(part, rule, share) for rule in rules}
        full = np.all([chosen.sum(axis=1) == part.lists.room for chosen in taken.values()], axis=0)
        if full.all():
            return kept, taken
        kept[kept] = full


def some(mined: Mined, kept: Bools) -> Mined:
    """Some of the questions, marked by `kept` [q]."""
    first, *rest = vars(mined).values()
    return Mined(Lists(*(part[kept] for part in vars(first).values())), *(part[kept] for part in rest))


@dataclass(frozen=True)
class Lessons:
    """What each rule's students are trained on: the same questions and positives, other negatives."""

    mined: dict[str, list[examples.Mined]]
    figures: dict[str, dict[str, float | None]]
    """Rule -> `bench.figures` of the questions that are trained on."""
    queries: int
    unfilled: int
    """Questions left out because a rule found too few negatives."""


def compose(trial: Trial, rows: pl.DataFrame, mined: Mined, params: Params) -> Lessons:
    """The negatives of every rule for `train_queries` questions that all rules fill; `mined` is made of `rows`.

    Raises `InputError` where fewer than 2 questions are left.
    """
    ids = rows["query_id"].unique(maintain_order=True)
    kept, taken = settle(mined, params.rule, params.max_false_negatives)
    names = ids.filter(pl.Series(kept))
    drawn = names.is_in(drawn_ids(names.to_list(), params.train_queries, params.seed)).to_numpy()
    if drawn.sum() < 2:
        raise InputError(
            f"{trial.collection.name}: {int(drawn.sum())} questions get {params.negatives} negatives under every rule "
            f"({', '.join(params.rule)}), too few to train on. Ask for fewer negatives, or leave a strict rule out."
        )
    part = some(some(mined, kept), drawn)
    mine = rows.filter(rows["query_id"].is_in(names.filter(pl.Series(drawn)).implode()))
    asked = dict(trial.collection.queries.select("query_id", "query").iter_rows())
    positives = dict(trial.collection.known.group_by("query_id", maintain_order=True).agg("doc_id").iter_rows())
    made, figures = {}, {}
    for rule, chosen in taken.items():
        figures[rule] = leak.figures(part, chosen[drawn])
        # an open place is a row, in the rows' order
        picked = mine.filter(pl.Series(chosen[drawn][part.lists.open]))
        made[rule] = [
            examples.Mined(query, asked[query], tuple(positives[query]), tuple(documents))
            for query, documents in picked.group_by("query_id", maintain_order=True).agg("doc_id").iter_rows()
        ]
    return Lessons(made, figures, int(drawn.sum()), int((~kept).sum()))


def epochs_of(mined: Sequence[examples.Mined], candidates: Path, params: training_stage.Params) -> list[list[Group]]:
    """The groups of all epochs in the order of training, those of distillation first."""
    taught = params.distill_epochs or 0
    first = lessons(candidates, mined, taught, params.positives, 1 + params.negatives, params.seed)
    later = [epoch_groups(mined, e, params.positives, params.negatives, params.seed) for e in range(params.epochs)]
    return [*first, *later]


def study(
    epochs: Sequence[Sequence[Group]],
    queries: Mapping[str, str],
    texts: Mapping[str, str],
    pairs: Sequence[Pair],
    params: training_stage.Params,
    tools: Tools,
) -> tuple[NDArray[np.float32], "History"]:
    """Train one student and score `pairs` [n] with it; goes on from the checkpoint in the scratch folder."""
    from stages.reranking.cross_encoder import has_head, load_reranker, score_pairs
    from stages.training.trainer import fit

    folder = resolve_model(params.base)
    rate = params.learning_rate or (training_stage.TRAINED_RATE if has_head(folder) else training_stage.FRESH_RATE)
    model = load_reranker(folder, params.device, params.max_length, params.dropout, params.seed)
    history = fit(model, epochs, queries, texts, params, rate, None, tools)
    if history.kept:
        model = load_reranker(history.kept, params.device, params.max_length, seed=params.seed)
    scores = score_pairs(model, pairs, params.dtype, lambda n: tools.progress.advance(n, len(pairs), "pairs"))
    return scores, history


def measured(fixed: Fixed, scores: pl.DataFrame) -> Doubles:
    """METRICS, then FUSED, of each test question: [q, 4], in the order of query_id.

    `scores` holds query_id, doc_id, reranker. Fused with the retriever's scores half and half, as no dev chooses.
    """
    table = fixed.lists.join(scores, on=["query_id", "doc_id"], how="left", maintain_order="left")
    table = table.with_columns(fused=fuse(table, DEFAULT_WEIGHT))
    return np.concatenate([of_run(fixed, table, name) for name in ("reranker", "fused")], axis=1)


def of_run(fixed: Fixed, table: pl.DataFrame, name: str) -> Doubles:
    """METRICS of each test question [q, 2] when the column `name` ranks the lists in `table`."""
    values = Judge(fixed.qrels, METRICS)(table.select("query_id", "doc_id", "relevance", score=name))
    return values["value"].to_numpy().reshape(-1, len(METRICS))


def report(values: Mapping[str, Doubles], embedder: Doubles, group: NDArray[Any], params: Params) -> dict[str, Any]:
    """`embedder`, and of each rule its metrics (the mean over seeds and questions), and `by_seed`; and `differences`.

    `values`: rule -> [seeds, q, 4] of `measured`; `embedder` [q, 2]; `group` [q] the questions' units. A difference is
    the learned mask's less the rule's (or the embedder's), [mean, low, high]: a question's metrics are averaged over
    the seeds first, then come the paired bootstrap by unit and its 95 % interval (None with too few units). That is
    over questions; how far seeds lie apart, `by_seed` says.
    """
    names = (*METRICS, *FUSED)
    found = {
        rule: dict(zip(names, map(float, of_rule.mean(axis=(0, 1))), strict=True))
        | {"by_seed": {name: of_rule[:, :, i].mean(axis=1).tolist() for i, name in enumerate(names)}}
        for rule, of_rule in values.items()
    }
    ours = next((rule for rule in (LEARNED, AS_HARD) if rule in values), None)
    others = {rule: of_rule.mean(axis=0) for rule, of_rule in values.items() if rule != ours}
    others["embedder"] = np.concatenate([embedder, embedder], axis=1)
    differences = {}
    for rule, theirs in others.items() if ours else ():
        assert ours
        compared = compare(values[ours].mean(axis=0) - theirs, group, samples=params.samples, seed=params.seed)
        differences[rule] = {name: [c.difference, c.low, c.high] for name, c in zip(names, compared, strict=True)}
    return {
        "embedder": dict(zip(METRICS, map(float, embedder.mean(axis=0)), strict=True)),
        "rules": found,
        "learned": ours,
        "differences": differences,
    }

"""Which kind of model tells hidden positives best: `python -m tests.benchmarks.estimator_kinds SET [SET ...]`.

Hides half of each question's positives and lets each kind learn to find them by the features of the learned mask and
the prior's word (a prior that did not see the set), in folds, so that no question is judged by a model that saw it:
the logistic regression that prep uses, the same with an isotonic step (fitted on folds within the others), and gradient
boosted trees that rise or fall with each feature as it should. Prints a JSON line a set: AUC, log loss, and by how much
the loss lies below the logistic regression's, with the standard error over questions.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.isotonic import IsotonicRegression

from pipeline.cli.progress import make_progress
from stages.core.context import StageContext
from stages.core.schemas import FEATURES, PAIR_COLUMNS
from stages.mining.candidates.features import TRANSFERABLE_FEATURES
from stages.mining.estimator.blended_model import TABLE_MODEL_C, stack_features
from stages.mining.estimator.folds import N_FOLDS, assign_folds
from stages.mining.estimator.logistic_model import LogisticModel
from stages.mining.verify import stacking
from tests.benchmarks.self_trained_verifier import ROOT, suspects_of

NAMES = (*FEATURES, "pretrained_log_odds")
RISES = (
    dict.fromkeys(NAMES, 1)
    | {"log_rank": -1}
    | dict.fromkeys(("hubness", "positive_z", "log_n_positives", "topk_sim_mean"), 0)
)
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Kind = Callable[[Floats, Bools, list[str], Floats], Doubles]
"""From what is learned from (table, labels, questions) to the log odds of another table."""


def logistic(table: Floats, labels: Bools, questions: list[str], asked: Floats) -> Doubles:
    """As prep does."""
    model = LogisticModel.fit(NAMES, table, labels, np.ones(len(labels)), TABLE_MODEL_C)
    return model.predict_log_odds(asked)


def isotonic(table: Floats, labels: Bools, questions: list[str], asked: Floats) -> Doubles:
    """The logistic regression, and a rising step function fitted on what it says of questions that it did not see."""
    predicted = by_fold(logistic, table, labels, questions)
    found = IsotonicRegression(y_min=1e-6, y_max=1 - 1e-6, out_of_bounds="clip").fit(predicted, labels)
    p: Doubles = found.predict(logistic(table, labels, questions, asked))
    odds: Doubles = np.log(p / (1 - p))
    return odds


def boosted(table: Floats, labels: Bools, questions: list[str], asked: Floats) -> Doubles:
    """Monotone gradient boosted trees."""
    model = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=200,
        max_leaf_nodes=15,
        min_samples_leaf=100,
        l2_regularization=1.0,
        monotonic_cst=[RISES[name] for name in NAMES],
        random_state=0,
    )
    found: Doubles = model.fit(table, labels).decision_function(asked)
    return found


KINDS: dict[str, Kind] = {"logistic": logistic, "isotonic": isotonic, "boosted": boosted}


def by_fold(kind: Kind, table: Floats, labels: Bools, questions: list[str]) -> Doubles:
    """Log odds [n] by models that did not see the question."""
    fold, out = assign_folds(questions), np.empty(len(labels))
    for number in range(N_FOLDS):
        seen = fold != number
        others = [question for question, one in zip(questions, seen, strict=True) if one]
        out[~seen] = kind(table[seen], labels[seen], others, table[~seen])
    return out


def main() -> None:
    """Print one JSON line for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="folders of --data")
    parser.add_argument("--most", type=int, default=3000, help="questions at all")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--folder", type=Path, default=Path("estimator-kinds"), help="where vectors are kept")
    given = parser.parse_args()
    for name in given.sets:
        work = given.folder.absolute() / name
        work.mkdir(parents=True, exist_ok=True)
        progress = make_progress(False, False)
        tools = StageContext(progress, work, given.folder.absolute() / "vectors", work / "logs")
        try:
            collection, _, suspects = suspects_of(given.data / name, work, given.most, tools)
            rows, found = suspects.collect_candidates(collection.held_out_positives)
        finally:
            progress.close()
        hidden = rows.join(
            collection.held_out_positives.with_columns(hidden=True), on=PAIR_COLUMNS, how="left", maintain_order="left"
        )
        labels, questions = hidden["hidden"].is_not_null().to_numpy(), rows["query_id"].to_list()
        word = suspects.model.pretrained_model.predict_log_odds(found[:, : len(TRANSFERABLE_FEATURES)])
        table = stack_features(found, word, NAMES)
        line: dict[str, Any] = {"set": name, "candidates": len(labels), "hidden": int(labels.sum())}
        odds_by_kind = {kind: by_fold(fit, table, labels, questions) for kind, fit in KINDS.items()}
        before = stacking.log_loss(odds_by_kind["logistic"], labels)
        for kind, odds in odds_by_kind.items():
            falls = stacking.cluster_robust_mean(
                before - stacking.log_loss(odds, labels), np.ones(len(labels)), np.array(questions, object)
            )
            line[kind] = {
                "auc": round(stacking.auc(odds, labels), 4),
                "loss": round(float(stacking.log_loss(odds, labels).mean()), 5),
                "below_logistic": [round(figure, 5) for figure in falls],
            }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

"""The value of a label: the order in which the LLM judge's budget is spent."""

import numpy as np
import polars as pl

from stages.core.arrays import Bools, Doubles, Floats


def compute_label_value(p: Floats, threshold: Floats, is_selected: Bools, is_within_cutoff: Bools) -> Doubles:
    """The expected value of a true label for each candidate, in false negatives: float64, shaped as p.

    This is the expected value of perfect information (Howard, "Information Value Theory", 1966) about one candidate. A
    label changes something only if it contradicts the decision:

    - A selected candidate is relevant with probability p. The label then removes one false negative: value p.
    - An excluded candidate is not relevant with probability 1 - p. The label then adds a hard negative. Its hardness is
      worth `threshold` false negatives (`stages.mining.risk_budget`): value (1 - p) x threshold.
    - A candidate that is neither selected nor `is_within_cutoff` (above the last selected of its query) has no value,
      and neither has one whose p or threshold is NaN.
    """
    value = np.where(is_selected, p.astype(np.float64), (1 - p.astype(np.float64)) * threshold)
    return np.where(is_selected | is_within_cutoff, np.nan_to_num(value, nan=0.0), 0.0)


def sort_by_label_value(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with a positive label value, the highest first (ties by query_id, doc_id), with the column label_value.

    `rows`: query_id, doc_id, p_false_negative, threshold, is_selected (bool), is_within_cutoff (bool).
    """
    columns = (rows[name].to_numpy() for name in ("p_false_negative", "threshold", "is_selected", "is_within_cutoff"))
    valued = rows.with_columns(label_value=pl.Series(compute_label_value(*columns), dtype=pl.Float64))
    return valued.filter(pl.col("label_value") > 0).sort(
        "label_value", "query_id", "doc_id", descending=[True, False, False]
    )

"""Where a verdict is worth most: the order in which a judge's budget is spent."""

import numpy as np
import polars as pl

from stages.core.arrays import Bools, Doubles, Floats


def compute_label_value(p: Floats, threshold: Floats, is_selected: Bools, is_within_cutoff: Bools) -> Doubles:
    """What a true verdict on each candidate is expected to change, in false negatives: float64, shaped as p.

    The expected value of perfect information (Howard, "Information Value Theory", 1966) about one candidate, all else
    as it stands. A verdict changes something only where it contradicts what was done:

    - Emitted, and with probability p relevant: one false negative fewer. Worth p.
    - Set aside, and with probability 1 - p not relevant: a hard negative is won back. Its hardness is worth
      `threshold` false negatives, for that is what the threshold of `stages.mining.risk_budget` says: the risk at which
      its hardness would just be worth taking, (score - the last chosen value) / price. Worth (1 - p) x threshold.
    - Neither emitted nor `is_within_cutoff` (it stands below the last that its query emits): nothing. Nor where p or
      threshold is NaN.

    So among the emitted the likeliest false ones come first, among those set aside the hardest near the threshold, and
    who is surely relevant or surely not is never asked about.
    """
    value = np.where(is_selected, p.astype(np.float64), (1 - p.astype(np.float64)) * threshold)
    return np.where(is_selected | is_within_cutoff, np.nan_to_num(value, nan=0.0), 0.0)


def sort_by_label_value(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows whose verdict is worth anything, the most first, with the column worth; ties by query_id, doc_id.

    `rows`: query_id, doc_id, p_false_negative, threshold, emitted (bool), reached (bool). The first N of the result are
    what a budget of N pairs is spent on; it hangs on the candidates alone, not on their order.
    """
    value = compute_label_value(
        *(rows[name].to_numpy() for name in ("p_false_negative", "threshold", "emitted", "reached"))
    )
    found = rows.with_columns(worth=pl.Series(value, dtype=pl.Float64)).filter(pl.col("worth") > 0)
    return found.sort("worth", "query_id", "doc_id", descending=[True, False, False])

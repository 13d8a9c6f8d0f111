"""The funnel: from the rows of the tables to queries and documents, with each loss, so that the counts add up."""

from dataclasses import dataclass

from stages.core.context import Summary
from stages.core.schemas import SPLITS


@dataclass(frozen=True)
class FunnelRow:
    """A count, or what was lost before it (negative) or what it is made of."""

    label: str
    count: int
    is_part: bool = False
    """It belongs to the count beside it: a loss, or one of its parts."""
    whole: int | None = None
    """What the count is a share of."""


def list_funnel_rows(summary: Summary) -> list[FunnelRow]:
    """The rows of the funnel, top down. Losses and splits add up; counts of what is rare stand there if not 0."""
    rows_in, queries = summary["rows_in"], summary["queries"]
    losses = [*sorted(summary["rejected"].items()), ("a document or a question alone", summary["standalone_rows"])]
    rows = [FunnelRow("rows in", rows_in, whole=rows_in)]
    rows += [FunnelRow(label, -count, True, rows_in) for label, count in losses if count]
    rows += [
        FunnelRow("rows used as pairs", summary["rows_used"], whole=rows_in),
        FunnelRow("merged into an equal query", -summary["merged_queries"], True, rows_in),
        FunnelRow("queries", queries, whole=queries),
        *(FunnelRow(split, summary["splits"].get(split, 0), True, queries) for split in SPLITS),
    ]
    rows += _list_if_any(summary, {"paraphrases_across_splits": "restated in another split"}, is_part=True)
    rows += _list_if_any(summary, {"documents": "documents"})
    parts = {"merged_documents": "rows merged into an equal document", "chunks": "in chunks"}
    parts |= {"near_duplicate_documents": "near duplicates", "documents_across_splits": "positive in two splits"}
    parts |= {"near_duplicates_across_splits": "near duplicates, positive in two splits"}
    rows += _list_if_any(summary, parts, is_part=True)
    others = {"curated_negatives": "curated negatives", "label_overrides": "label overrides"}
    return rows + _list_if_any(summary, others)


def _list_if_any(summary: Summary, labels: dict[str, str], is_part: bool = False) -> list[FunnelRow]:
    return [FunnelRow(label, summary[name], is_part) for name, label in labels.items() if summary.get(name)]


def format_funnel(summary: Summary) -> list[str]:
    """The funnel as aligned lines of text."""
    per_query = summary["positives_per_query"]
    cells = [(f"{'  ' * row.is_part}{row.label}", f"{row.count:,}", "") for row in list_funnel_rows(summary)]
    cells.append(("positives a query", f"{per_query['mean']:.2f}", f"  (at most {per_query['max']})"))
    label_width, number_width = (max(len(row[column]) for row in cells) for column in (0, 1))
    return [f"{label:<{label_width}}  {number:>{number_width}}{note}" for label, number, note in cells]

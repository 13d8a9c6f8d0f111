"""The report's first two sections: what metrics.json says, and no more than its intervals bear."""

from collections.abc import Mapping
from typing import Any

from pipeline.report.charts import Dot, render_dot_plot
from pipeline.report.html import Html, escape_html, format_count, join_lines, render_note, render_section, render_table
from stages.evaluation.conclusions import HEADLINE_METRICS, describe_result, explain_interval

Metrics = Mapping[str, Any]

ROW_LABELS = {
    "bm25": "BM25",
    "embedder": "embedder",
    "base_reranker": "base reranker",
    "reranker": "trained reranker",
    "fused": "fused",
}


def render_headline(metrics: Metrics) -> Html:
    """What the test split says, in one sentence, with its figures."""
    rows, tests, lists = metrics["test"], metrics["comparisons"]["test"], metrics["candidate_lists"]["test"]
    out: list[str] = [
        Html('<p class="kicker">prep: report of a refresh</p>'),
        Html(f"<h1>{escape_html(describe_result(metrics))}</h1>"),
    ]
    if metrics["collapse_reason"]:
        out.append(Html(f'<p class="warning">{escape_html(metrics["collapse_reason"])}</p>'))
    if not rows:
        told = "The test split holds no question with a positive, so the reranker was not tested. "
        return join_lines(
            [*out, render_note(told + "Give test a share (test_ratio) or mark rows as test, and refresh.")]
        )
    shown = [row for row in ("embedder", "reranker", "fused") if row in rows]
    bodies = []
    for name in HEADLINE_METRICS:
        cells = [render_metric(rows[row][name], tests.get(row, {}).get(name), row == "reranker") for row in shown]
        bodies.append([name, *cells])
    head = ["", *(("→ " if row != "embedder" else "") + ROW_LABELS[row] for row in shown)]
    out.append(render_table(head, [("", bodies)], "headline"))
    sample = (
        f", a sample of {lists['n_queries_available']:,}" if lists["n_queries_available"] > lists["n_queries"] else ""
    )
    counted = (
        f"Means over {format_count(lists['n_queries'], 'test question')} in "
        f"{format_count(lists['n_groups'], 'independent group')}{sample}; 1 is a perfect ranking. In small print the "
        f"difference "
        "to the embedder, its 95% interval (paired bootstrap by group) and p."
    )
    return join_lines(
        [
            *out,
            render_note(counted, explain_interval(metrics)),
        ]
    )


def render_metric(value: float, test: Mapping[str, float | None] | None, is_highlighted: bool) -> Html:
    """A large figure with its difference below it."""
    small = (
        "".join(f'<span class="small">{escape_html(part)}</span> ' for part in format_difference(test)) if test else ""
    )
    return Html(
        f'<span class="{"ours" if is_highlighted else "other"}"><span class="big">{value:.3f}</span></span>{small}'
    )


def format_difference(test: Mapping[str, float | None]) -> list[str]:
    """`+0.083`, `[+0.051, +0.114]`, `p = 0.002`."""
    found = f"{test['difference']:+.3f}"
    if test["p"] is None:
        return [found, "too few groups"]
    p = f"p = {test['p']:.3f}" if test["p"] >= 0.001 else "p < 0.001"
    return [found, f"[{test['low']:+.3f}, {test['high']:+.3f}]", p]


def render_quality(metrics: Metrics) -> Html:
    """Every row of the evaluation: a plot of the headline's metrics, and all figures in a table."""
    split = "test" if metrics["test"] else "dev"
    rows, lists, top_k = metrics[split], metrics["candidate_lists"][split], metrics["parameters"]["top_k"]
    if not rows:
        return render_section("Ranking quality", render_note("Neither test nor dev holds a question with a positive."))
    out: list[str] = [
        render_note(
            f"Every row ranks the same documents: the retriever's best {top_k} for each {split} question, which hold "
            f"{lists['recall_at_top_k']:.1%} of the positives; no reranker can find the rest.",
            "Dot: the mean. Whisker: the 95% interval of the difference to the embedder, drawn from the embedder's "
            "dashed line; a whisker that crosses it means no clear difference.",
            "" if split == "test" else "Dev chose the epoch and the fusion's weight, so its figures flatter.",
        )
    ]
    for name in HEADLINE_METRICS:
        tests = {row: found[name] for row, found in metrics["comparisons"][split].items()}
        out.append(render_dot_plot(f"{name}, {split}", _make_dots(rows, name, tests), rows["embedder"][name]))
    forced = metrics["positives_forced"]
    named = [("test", metrics["test"]), ("dev", metrics["dev"])]
    named += [(f"{name}, positives forced in", forced[name]) for name in ("test", "dev")]
    names = list(rows["embedder"])
    bodies = [
        (label, [[_format_row_label(row), *(f"{found[row][name]:.3f}" for name in names)] for row in found])
        for label, found in named
        if found
    ]
    out.append(render_table(["", *names], bodies))
    weight, chosen_on = metrics["fusion"]["weight"], metrics["fusion"]["selected_on"]
    out.append(
        render_note(
            "With the positives forced in, positives that the retriever missed take the place of the last documents of "
            "a list, which shows the reranker apart from the retriever.",
            f"Fused: {weight:.2f} × the reranker's score + {1 - weight:.2f} × the embedder's, both standardised; the "
            + ("weight was chosen on dev." if chosen_on else "weight is the default, as there is no dev split."),
            "The base reranker's head was never trained: its figures are those of chance."
            if metrics.get("base_has_new_head")
            else "The base reranker is the model before training.",
        )
    )
    return render_section("Ranking quality", *out)


def _make_dots(rows: Metrics, name: str, tests: Mapping[str, Mapping[str, Any]]) -> list[Dot]:
    middle = rows["embedder"][name]
    out = []
    for row, found in rows.items():
        test = tests.get(row, {})
        low, high = (None if test.get(end) is None else middle + test[end] for end in ("low", "high"))
        out.append(Dot(ROW_LABELS.get(row, row), found[name], low, high, is_highlighted=row == "reranker"))
    return out


def _format_row_label(row: str) -> str:
    return (
        Html(f'<span class="ours">{escape_html(ROW_LABELS[row])}</span>')
        if row == "reranker"
        else ROW_LABELS.get(row, row)
    )

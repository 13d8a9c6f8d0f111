"""The report's first two sections: what metrics.json says, and no more than its intervals bear."""

from collections.abc import Mapping
from typing import Any

from pipeline.report.charts import Dot, dots
from pipeline.report.html import Html, count, esc, lines, note, section, table
from stages.evaluation.bootstrap import MIN_GROUPS

Metrics = Mapping[str, Any]

ROWS = {
    "bm25": "BM25",
    "embedder": "embedder",
    "base_reranker": "base reranker",
    "reranker": "trained reranker",
    "fused": "fused",
}
HEADLINE = ("nDCG@10", "MRR@10")


def headline(metrics: Metrics) -> Html:
    """What the test split says, in one sentence, with its figures."""
    rows, tests, lists = metrics["test"], metrics["tests"]["test"], metrics["lists"]["test"]
    out: list[str] = [
        Html('<p class="kicker">prep: report of a refresh</p>'),
        Html(f"<h1>{esc(finding(metrics))}</h1>"),
    ]
    if metrics["collapse"]:
        out.append(Html(f'<p class="warning">{esc(metrics["collapse"])}</p>'))
    if not rows:
        told = "The test split holds no question with a positive, so the reranker was not tested. "
        return lines([*out, note(told + "Give test a share (--test) or mark rows as test, and refresh.")])
    shown = [row for row in ("embedder", "reranker", "fused") if row in rows]
    bodies = []
    for name in HEADLINE:
        cells = [figure(rows[row][name], tests.get(row, {}).get(name), row == "reranker") for row in shown]
        bodies.append([name, *cells])
    head = ["", *(("→ " if row != "embedder" else "") + ROWS[row] for row in shown)]
    out.append(table(head, [("", bodies)], "headline"))
    sample = f", a sample of {lists['sampled_from']:,}" if lists["sampled_from"] > lists["queries"] else ""
    counted = (
        f"Means over {count(lists['queries'], 'test question')} in "
        f"{count(lists['groups'], 'independent group')}{sample}; 1 is a perfect ranking. In small print the difference "
        "to the embedder, its 95% interval (paired bootstrap by group) and p."
    )
    return lines([*out, note(counted, reading(tests.get("reranker", {}).get(HEADLINE[0]), lists["groups"]))])


def finding(metrics: Metrics) -> str:
    """The page's first sentence, which claims no more than the intervals of nDCG@10 bear."""
    if metrics["collapse"]:
        return "The reranker collapsed: it tells documents apart no longer"
    if not metrics["test"]:
        return "There are no test questions, so nothing is known of the reranker's quality"
    found = {row: verdict(metrics["tests"]["test"].get(row, {}).get(HEADLINE[0])) for row in ("reranker", "fused")}
    if found["reranker"] == "unknown":
        return "There are too few test questions to tell whether the reranker is better"
    if found["reranker"] != "unclear":
        return f"The trained reranker ranks {found['reranker']} than the embedder"
    if found["fused"] == "better":
        return "Fused with the embedder the trained reranker ranks better; alone, it is not clearly better"
    return "No clear difference between the trained reranker and the embedder"


def advice(metrics: Metrics) -> list[str]:
    """What to do about a reranker that ranks worse than the embedder alone; empty where it does not."""
    found = {row: verdict(metrics["tests"]["test"].get(row, {}).get(HEADLINE[0])) for row in ("reranker", "fused")}
    if found["reranker"] != "worse":
        return []
    told = ["Do not rank with it alone: it has learned too little from these questions."]
    if metrics["untrained_head"]:
        told.append("Its base had no ranking head. Give more questions, or a base that ranks already ([train] base).")
    if found["fused"] != "worse":
        told.append("Fused with the embedder's score it does no clear harm.")
    return told


def verdict(test: Mapping[str, float | None] | None) -> str:
    """better, worse or unclear, by whether the interval leaves out 0; unknown where there is no interval."""
    if test is None or test["low"] is None or test["high"] is None:
        return "unknown"
    return "better" if test["low"] > 0 else "worse" if test["high"] < 0 else "unclear"


def reading(test: Mapping[str, float | None] | None, groups: int) -> str:
    """What the interval of the trained reranker means."""
    told = f"The trained reranker's interval of {HEADLINE[0]}"
    return {
        "better": f"{told} leaves out 0: luck is an unlikely explanation.",
        "worse": f"{told} leaves out 0: the loss is unlikely to be luck.",
        "unclear": f"{told} holds 0: the difference may be luck. More test questions would narrow it.",
        "unknown": f"With {count(groups, 'group')} no difference can be told from luck; {MIN_GROUPS} are the least.",
    }[verdict(test)]


def figure(value: float, test: Mapping[str, float | None] | None, ours: bool) -> Html:
    """A large figure with its difference below it."""
    small = "".join(f'<span class="small">{esc(part)}</span> ' for part in difference(test)) if test else ""
    return Html(f'<span class="{"ours" if ours else "other"}"><span class="big">{value:.3f}</span></span>{small}')


def difference(test: Mapping[str, float | None]) -> list[str]:
    """`+0.083`, `[+0.051, +0.114]`, `p = 0.002`."""
    found = f"{test['difference']:+.3f}"
    if test["p"] is None:
        return [found, "too few groups"]
    p = f"p = {test['p']:.3f}" if test["p"] >= 0.001 else "p < 0.001"
    return [found, f"[{test['low']:+.3f}, {test['high']:+.3f}]", p]


def quality(metrics: Metrics) -> Html:
    """Every row of the evaluation: a plot of the headline's metrics, and all figures in a table."""
    split = "test" if metrics["test"] else "dev"
    rows, lists, top_k = metrics[split], metrics["lists"][split], metrics["parameters"]["top_k"]
    if not rows:
        return section("Ranking quality", note("Neither test nor dev holds a question with a positive."))
    out: list[str] = [
        note(
            f"Every row ranks the same documents: the retriever's best {top_k} for each {split} question, which hold "
            f"{lists['recall_at_top_k']:.1%} of the positives; no reranker can find the rest.",
            "Dot: the mean. Whisker: the 95% interval of the difference to the embedder, drawn from the embedder's "
            "dashed line; a whisker that crosses it means no clear difference.",
            "" if split == "test" else "Dev chose the epoch and the fusion's weight, so its figures flatter.",
        )
    ]
    for name in HEADLINE:
        tests = {row: found[name] for row, found in metrics["tests"][split].items()}
        out.append(dots(f"{name}, {split}", _dots(rows, name, tests), rows["embedder"][name]))
    forced = metrics["forced"]
    named = [("test", metrics["test"]), ("dev", metrics["dev"])]
    named += [(f"{name}, positives forced in", forced[name]) for name in ("test", "dev")]
    names = list(rows["embedder"])
    bodies = [
        (label, [[_label(row), *(f"{found[row][name]:.3f}" for name in names)] for row in found])
        for label, found in named
        if found
    ]
    out.append(table(["", *names], bodies))
    weight, chosen_on = metrics["fusion"]["weight"], metrics["fusion"]["chosen_on"]
    out.append(
        note(
            "With the positives forced in, positives that the retriever missed take the place of the last documents of "
            "a list, which shows the reranker apart from the retriever.",
            f"Fused: {weight:.2f} × the reranker's score + {1 - weight:.2f} × the embedder's, both standardised; the "
            + ("weight was chosen on dev." if chosen_on else "weight is the default, as there is no dev split."),
            "The base reranker's head was never trained: its figures are those of chance."
            if metrics.get("untrained_head")
            else "The base reranker is the model before training.",
        )
    )
    return section("Ranking quality", *out)


def _dots(rows: Metrics, name: str, tests: Mapping[str, Mapping[str, Any]]) -> list[Dot]:
    middle = rows["embedder"][name]
    out = []
    for row, found in rows.items():
        test = tests.get(row, {})
        low, high = (None if test.get(end) is None else middle + test[end] for end in ("low", "high"))
        out.append(Dot(ROWS.get(row, row), found[name], low, high, ours=row == "reranker"))
    return out


def _label(row: str) -> str:
    return Html(f'<span class="ours">{esc(ROWS[row])}</span>') if row == "reranker" else ROWS.get(row, row)

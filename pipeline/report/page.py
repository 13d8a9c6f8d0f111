"""The page of a publication, report.html: can these negatives be trusted, and is the new reranker better?

A pure function of the artifacts: no times, paths or host names, so the same artifacts give the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report import examples as evidence
from pipeline.report.charts import render_bar, render_histogram
from pipeline.report.html import (
    Html,
    escape_html,
    format_count,
    join_lines,
    render_html_page,
    render_note,
    render_section,
    render_table,
    render_text,
    truncate_text,
)
from pipeline.report.quality import render_headline, render_quality
from pipeline.workflow.artifact_store import Artifact
from pipeline.workflow.graph import STAGES_BY_NAME
from stages.core.schemas import SPLITS
from stages.mining.explain import describe_estimate
from stages.mining.mask import NEGATIVE, REASON_PRECEDENCE, RULE_PLACEHOLDER
from stages.mining.threshold_rules import THRESHOLD_RULES, describe_rule

REASON_TEXTS = {
    "known_positive": "is a positive of the question",
    "repeated_query": "is a positive of a question that says the same",
    "same_text": "has the text of a positive",
    "curated_negative": "was judged not relevant by people",
    "contains_answer": "holds a known answer of the question",
    "near_duplicate": "is nearly the same as a positive",
    "llm_judge": "answers the question, as the judge says",
    "verifier": "is taken for a positive by the teacher",
    "no_positive": "the rule has no positive to measure from",
    "relabelled": "became a positive: it is one by all that is known",
    "weighted": "does not pass the rule, and is kept with a weight",
    "kept": "passed every check",
}


def render_report(artifacts: Mapping[str, Artifact]) -> str:
    """The whole page as one HTML file that loads nothing, from a committed artifact of each stage of the pipeline."""
    metrics = json.loads((artifacts["evaluate"].folder / "metrics.json").read_text(encoding="utf-8"))
    body = [
        render_headline(metrics),
        render_quality(metrics),
        render_funnel(artifacts["pairs"].summary),
        render_negatives(artifacts, evidence.compute_score_histogram(artifacts)),
        render_examples(evidence.sample_queries(artifacts)),
        render_provenance(artifacts),
    ]
    return render_html_page("prep: report of a refresh", join_lines(body))


def render_funnel(summary: Mapping[str, Any]) -> Html:
    """From rows to questions and documents, with each loss."""
    rows_in, queries = summary["rows_in"], summary["queries"]
    rows = [("rows in", rows_in, rows_in)]
    rows += [(f"  {reason}", -lost, rows_in) for reason, lost in sorted(summary["rejected"].items())]
    rows += [("rows used", summary["rows_used"], rows_in)]
    rows += [("  merged into an equal question", summary["merged_queries"], rows_in)]
    rows += [("questions", queries, queries)]
    rows += [(f"  {split}", summary["splits"].get(split, 0), queries) for split in SPLITS]
    rows += [("documents", summary["documents"], 0)]
    for name, key in (
        ("  in chunks", "chunks"),
        ("  positive on two sides of the split", "documents_across_splits"),
        ("curated negatives", "curated_negatives"),
    ):
        rows += [(name, summary[key], 0)] if summary[key] else []
    cells = [
        [
            _format_funnel_label(name),
            f"{number:,}".replace("-", "−"),
            render_bar(abs(number) / whole) if whole else Html(""),
        ]
        for name, number, whole in rows
    ]
    per = summary["positives_per_query"]
    cells.append(["positives a question", f"{per['mean']:.2f}", Html(f"at most {per['max']}")])
    told = render_note(
        "From the rows of the tables to questions and documents. Every row that was not used stands in "
        "rejects.parquet with its reason.",
        "The bars are shares of all rows and, from the questions on, of all questions.",
    )
    said = [render_text(line, css_class="note") for line in summary["notes"]]
    return render_section("What came in", told, render_table([], [("", cells)], "funnel"), *said)


def _format_funnel_label(name: str) -> str:
    return Html(f'<span class="in">{escape_html(name.strip())}</span>') if name.startswith(" ") else name


def render_negatives(artifacts: Mapping[str, Artifact], score_histogram: evidence.ScoreHistogram | None) -> Html:
    """What the mask did, how full the groups are, and where the scores lie."""
    mask, sampling_summary = artifacts["mask"], artifacts["sample"].summary
    encoder = str(artifacts["encode"].summary["model"]).rstrip("/").rsplit("/", 1)[-1]
    found = ", ".join(
        f"{n:,} by {name}" for name, n in sorted(artifacts["search"].summary["candidates_by_source"].items())
    )
    out: list[str] = [
        render_note(
            f"Candidates are documents found for the questions, of every split: {found} (dense goes by {encoder}).",
            f"The rule {mask.summary['rule']} accepts: {describe_mask_rule(mask)}.",
            "A candidate takes the first line of the table that holds for it; only those in the lines that say "
            "negative can be trained on.",
        ),
        render_table(["reason", "verdict", "candidates", "share"], [("", make_verdict_rows(mask))]),
        render_fill_rate(sampling_summary),
        *(render_note(line[0].upper() + line[1:] + ".") for line in describe_estimate(mask.summary.get("estimate"))),
    ]
    if score_histogram:
        title = "Candidates of train questions, by the retriever's score"
        out.append(
            render_histogram(
                title,
                *score_histogram.score_range,
                score_histogram.series,
                score_histogram.make_markers(sampling_summary["hardness"]),
            )
        )
        out.append(
            render_note(
                "A bar stacks the verdicts on the candidates of that score. The nearer the mined negatives stand to "
                "the positives, the harder they are, and the more hangs on the mask.",
                "The horizontal line spans the middle 80% of the positives.",
            )
        )
    return render_section("The negatives", *out)


def make_verdict_rows(mask: Artifact) -> list[list[str]]:
    """A line for each reason that was given, in the order in which the mask asks them."""
    name, verdicts = mask.summary["rule"], mask.summary["verdicts"]
    order = [*(name if flag == RULE_PLACEHOLDER else flag for flag, _ in REASON_PRECEDENCE), "kept"]
    given = {(reason, verdict): number for verdict, found in verdicts.items() for reason, number in found.items()}
    total = sum(given.values())
    known = {reason: place for place, reason in enumerate(order)}
    words = REASON_TEXTS | {name: "does not pass the rule"}
    return [
        [
            _format_reason(reason, words.get(reason, "")),
            _format_verdict(verdict),
            f"{number:,}",
            _format_share(number / total),
        ]
        for (reason, verdict), number in sorted(given.items(), key=lambda item: (known.get(item[0][0], 99), item[0]))
    ]


def _format_reason(name: str, words: str) -> str:
    return Html(f'{escape_html(name)} <span class="why">{escape_html(words)}</span>')


def _format_verdict(verdict: str) -> str:
    return Html(f"<strong>{verdict}</strong>") if verdict == NEGATIVE else verdict


def _format_share(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 or not share else "<0.1%"


def describe_mask_rule(mask: Artifact) -> str:
    """What the mask's rule accepts, in words, with its source."""
    name, threshold = mask.summary["rule"], mask.summary["threshold"]
    if name not in THRESHOLD_RULES:
        return f"what it does not take for a positive (threshold {threshold})"
    given = mask.manifest["parameters"]
    words = describe_rule(name, threshold, (given["window_start"], given["window_end"]))
    return f"{words} ({THRESHOLD_RULES[name].source})"


def render_fill_rate(sampling_summary: Mapping[str, Any]) -> Html:
    """The fill rate and the hardness, in a paragraph."""
    if sampling_summary["fill_rate"] is None:
        return render_note("No train question has a positive, so there is nothing to compose.")
    none = sampling_summary["skipped_queries"]["no_negatives"]
    told = (
        f"Of the {sampling_summary['n_requested']} negatives asked for each question, "
        f"{sampling_summary['fill_rate']:.1%} were found: "
        f"{sampling_summary['negatives']:,} for {format_count(sampling_summary['queries'], 'train question')}, of "
        f"which "
        f"{sampling_summary['n_underfilled']:,} got fewer than asked for. "
    )
    if none:
        told += f"{format_count(none, 'further question')} got none and {'is' if none == 1 else 'are'} not trained on. "
    if sampling_summary["hardness"] is not None:
        told += f"The mean retriever score of the negatives (their hardness) is {sampling_summary['hardness']:.3f}. "
    if sampling_summary.get("expected_false_negative_rate") is not None:
        told += f"Of these, {sampling_summary['expected_false_negative_rate']:.2%} are expected to be false."
    return Html(f"<p>{escape_html(told.strip())}</p>")


def render_examples(queries: Sequence[evidence.ExampleQuery]) -> Html:
    """Some questions of the train split as they are trained on."""
    told = render_note(
        "Drawn from the train split by a hash of the question's id, not chosen. The number beside a text is the "
        "retriever's score.",
        "Ask of each negative: does it answer the question? And of what was set aside nearest to its threshold: was it "
        "right to lose it?",
        Html("<code>prep show</code> with a question's id lists all of its candidates."),
    )
    return render_section("Examples", told, *(render_example(question) for question in queries))


def render_example(query: evidence.ExampleQuery) -> Html:
    """One question with its positives, its first negatives and the nearest of what was set aside."""
    out: list[str] = [Html("<article>"), render_text(query.text, "h3")]
    out.append(Html(f"<code>{escape_html(truncate_text(query.query_id))}</code>"))
    for title, some in (
        ("Positive", query.positives),
        ("Mined negatives", query.negatives),
        ("Set aside, nearest to the threshold", query.ignored),
    ):
        left = f" ({len(some.rows)} of {some.total:,})" if some.total > len(some.rows) else ""
        out.append(Html(f"<h4>{escape_html(title + (left if some.total else ': none'))}</h4>"))
        out += [Html("<ol>"), *map(_render_document, some.rows), Html("</ol>")] if some.rows else []
    return join_lines([*out, Html("</article>")])


def _render_document(row: Mapping[str, Any]) -> Html:
    rank = "not among the candidates" if row["rank"] is None else f"rank {row['rank']:,}"
    told = rank if row["verdict"] == "positive" else f"{rank}; {row['explanation']}"
    why = f'<p class="why">{escape_html(told)}</p>'
    score = "" if row["score"] is None else f"{row['score']:.3f}"
    return Html(f'<li><span class="score">{score}</span><div>{render_text(row["text"])}{why}</div></li>')


def render_provenance(artifacts: Mapping[str, Artifact]) -> Html:
    """Which artifacts the page is of, and what was set in each stage."""
    rows = [
        [
            name,
            Html(f"<code>{escape_html(artifacts[name].key[:8])}</code>"),
            format_changed_settings(name, artifacts[name]),
        ]
        for name in STAGES_BY_NAME
        if name in artifacts
    ]
    told = render_note(
        "The artifacts that this page is made of: the first digits of their keys, and the settings that are not the "
        "defaults."
    )
    return render_section(
        "Where this comes from", told, render_table(["stage", "key", "settings"], [("", rows)], "stages")
    )


def format_changed_settings(stage: str, artifact: Artifact) -> str:
    """The parameters in an artifact's manifest that differ from the stage's defaults, as prep.toml would have them."""
    defaults = STAGES_BY_NAME[stage].load_module().Params().model_dump(mode="json")
    given = artifact.manifest["parameters"]
    differ = {name: value for name, value in sorted(given.items()) if name not in defaults or defaults[name] != value}
    return (
        ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in differ.items()) or "defaults"
    )

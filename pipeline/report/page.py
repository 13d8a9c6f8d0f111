"""The page of a publication, report.html: can these negatives be trusted, and is the new reranker better?

A pure function of the artifacts: no times, paths or host names, so the same artifacts give the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report import examples as evidence
from pipeline.report.charts import bar, histogram
from pipeline.report.html import Html, count, cut, document, esc, lines, note, prose, section, table
from pipeline.report.quality import headline, quality
from pipeline.workflow.artifact_store import Artifact
from pipeline.workflow.graph import STAGES
from stages.core.schemas import SPLITS
from stages.mining.estimator import validation
from stages.mining.mask import NEGATIVE, PRECEDENCE, RULE
from stages.mining.threshold_rules import RULES, described

REASONS = {
    "known_positive": "is a positive of the question",
    "repeated_question": "is a positive of a question that says the same",
    "same_text": "has the text of a positive",
    "curated": "was judged not relevant by people",
    "contains_answer": "holds a known answer of the question",
    "near_duplicate": "is nearly the same as a positive",
    "judged": "answers the question, as the judge says",
    "teacher": "is taken for a positive by the teacher",
    "no_positive": "the rule has no positive to measure from",
    "relabelled": "became a positive: it is one by all that is known",
    "weighted": "does not pass the rule, and is kept with a weight",
    "kept": "passed every check",
}


def page(artifacts: Mapping[str, Artifact]) -> str:
    """The whole page as one HTML file that loads nothing, from a committed artifact of each stage of the pipeline."""
    metrics = json.loads((artifacts["evaluate"].folder / "metrics.json").read_text(encoding="utf-8"))
    body = [
        headline(metrics),
        quality(metrics),
        funnel(artifacts["pairs"].summary),
        negatives(artifacts, evidence.train_scores(artifacts)),
        examples(evidence.drawn_questions(artifacts)),
        provenance(artifacts),
    ]
    return document("prep: report of a refresh", lines(body))


def funnel(summary: Mapping[str, Any]) -> Html:
    """From rows to questions and documents, with each loss."""
    rows_in, queries = summary["rows_in"], summary["queries"]
    rows = [("rows in", rows_in, rows_in)]
    rows += [(f"  {reason}", -lost, rows_in) for reason, lost in sorted(summary["rejected"].items())]
    rows += [("rows used", summary["rows_used"], rows_in)]
    rows += [("  merged into an equal question", summary["merged_questions"], rows_in)]
    rows += [("questions", queries, queries)]
    rows += [(f"  {split}", summary["splits"].get(split, 0), queries) for split in SPLITS]
    rows += [("documents", summary["documents"], 0)]
    for name, key in (
        ("  in chunks", "chunks"),
        ("  positive on two sides of the split", "shared_documents"),
        ("curated negatives", "curated_negatives"),
    ):
        rows += [(name, summary[key], 0)] if summary[key] else []
    cells = [
        [_indented(name), f"{number:,}".replace("-", "−"), bar(abs(number) / whole) if whole else Html("")]
        for name, number, whole in rows
    ]
    per = summary["positives_per_query"]
    cells.append(["positives a question", f"{per['mean']:.2f}", Html(f"at most {per['max']}")])
    told = note(
        "From the rows of the tables to questions and documents. Every row that was not used stands in "
        "rejects.parquet with its reason.",
        "The bars are shares of all rows and, from the questions on, of all questions.",
    )
    said = [prose(line, css="note") for line in summary["notes"]]
    return section("What came in", told, table([], [("", cells)], "funnel"), *said)


def _indented(name: str) -> str:
    return Html(f'<span class="in">{esc(name.strip())}</span>') if name.startswith(" ") else name


def negatives(artifacts: Mapping[str, Artifact], scores: evidence.Scores | None) -> Html:
    """What the mask did, how full the groups are, and where the scores lie."""
    mask, composed = artifacts["mask"], artifacts["compose"].summary
    encoder = str(artifacts["encode"].summary["encoder"]).rstrip("/").rsplit("/", 1)[-1]
    found = ", ".join(f"{n:,} by {name}" for name, n in sorted(artifacts["search"].summary["by_source"].items()))
    out: list[str] = [
        note(
            f"Candidates are documents found for the questions, of every split: {found} (dense goes by {encoder}).",
            f"The rule {mask.summary['rule']} accepts: {rule(mask)}.",
            "A candidate takes the first line of the table that holds for it; only those in the lines that say "
            "negative can be trained on.",
        ),
        table(["reason", "verdict", "candidates", "share"], [("", verdict_rows(mask))]),
        filling(composed),
        *(note(line[0].upper() + line[1:] + ".") for line in validation.lines(mask.summary.get("estimate"))),
    ]
    if scores:
        title = "Candidates of train questions, by the retriever's score"
        out.append(histogram(title, *scores.span, scores.series, scores.markers(composed["hardness"])))
        out.append(
            note(
                "A bar stacks the verdicts on the candidates of that score. The nearer the mined negatives stand to "
                "the positives, the harder they are, and the more hangs on the mask.",
                "The horizontal line spans the middle 80% of the positives.",
            )
        )
    return section("The negatives", *out)


def verdict_rows(mask: Artifact) -> list[list[str]]:
    """A line for each reason that was given, in the order in which the mask asks them."""
    name, verdicts = mask.summary["rule"], mask.summary["verdicts"]
    order = [*(name if flag == RULE else flag for flag, _ in PRECEDENCE), "kept"]
    given = {(reason, verdict): number for verdict, found in verdicts.items() for reason, number in found.items()}
    total = sum(given.values())
    known = {reason: place for place, reason in enumerate(order)}
    words = REASONS | {name: "does not pass the rule"}
    return [
        [_reason(reason, words.get(reason, "")), _strong(verdict), f"{number:,}", _share(number / total)]
        for (reason, verdict), number in sorted(given.items(), key=lambda item: (known.get(item[0][0], 99), item[0]))
    ]


def _reason(name: str, words: str) -> str:
    return Html(f'{esc(name)} <span class="why">{esc(words)}</span>')


def _strong(verdict: str) -> str:
    return Html(f"<strong>{verdict}</strong>") if verdict == NEGATIVE else verdict


def _share(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 or not share else "<0.1%"


def rule(mask: Artifact) -> str:
    """What the mask's rule accepts, in words, with its source."""
    name, threshold = mask.summary["rule"], mask.summary["threshold"]
    if name not in RULES:
        return f"what it does not take for a positive (threshold {threshold})"
    given = mask.manifest["parameters"]
    words = described(name, threshold, (given["window_start"], given["window_end"]))
    return f"{words} ({RULES[name].source})"


def filling(composed: Mapping[str, Any]) -> Html:
    """The fill rate and the hardness, in a paragraph."""
    if composed["fill"] is None:
        return note("No train question has a positive, so there is nothing to compose.")
    none = composed["left_out"]["no negatives"]
    told = (
        f"Of the {composed['asked']} negatives asked for each question, {composed['fill']:.1%} were found: "
        f"{composed['negatives']:,} for {count(composed['queries'], 'train question')}, of which "
        f"{composed['short']:,} got fewer than asked for. "
    )
    if none:
        told += f"{count(none, 'further question')} got none and {'is' if none == 1 else 'are'} not trained on. "
    if composed["hardness"] is not None:
        told += f"The mean retriever score of the negatives (their hardness) is {composed['hardness']:.3f}. "
    if composed.get("false_negatives") is not None:
        told += f"Of these, {composed['false_negatives']:.2%} are expected to be false."
    return Html(f"<p>{esc(told.strip())}</p>")


def examples(questions: Sequence[evidence.Question]) -> Html:
    """Some questions of the train split as they are trained on."""
    told = note(
        "Drawn from the train split by a hash of the question's id, not chosen. The number beside a text is the "
        "retriever's score.",
        "Ask of each negative: does it answer the question? And of what was set aside nearest to its threshold: was it "
        "right to lose it?",
        Html("<code>prep show</code> with a question's id lists all of its candidates."),
    )
    return section("Examples", told, *(example(question) for question in questions))


def example(question: evidence.Question) -> Html:
    """One question with its positives, its first negatives and the nearest of what was set aside."""
    out: list[str] = [Html("<article>"), prose(question.text, "h3")]
    out.append(Html(f"<code>{esc(cut(question.query_id))}</code>"))
    for title, some in (
        ("Positive", question.positives),
        ("Mined negatives", question.negatives),
        ("Set aside, nearest to the threshold", question.masked),
    ):
        left = f" ({len(some.rows)} of {some.total:,})" if some.total > len(some.rows) else ""
        out.append(Html(f"<h4>{esc(title + (left if some.total else ': none'))}</h4>"))
        out += [Html("<ol>"), *map(_document, some.rows), Html("</ol>")] if some.rows else []
    return lines([*out, Html("</article>")])


def _document(row: Mapping[str, Any]) -> Html:
    rank = "not among the candidates" if row["rank"] is None else f"rank {row['rank']:,}"
    told = rank if row["verdict"] == "positive" else f"{rank}; {row['explanation']}"
    why = f'<p class="why">{esc(told)}</p>'
    score = "" if row["score"] is None else f"{row['score']:.3f}"
    return Html(f'<li><span class="score">{score}</span><div>{prose(row["text"])}{why}</div></li>')


def provenance(artifacts: Mapping[str, Artifact]) -> Html:
    """Which artifacts the page is of, and what was set in each stage."""
    rows = [
        [name, Html(f"<code>{esc(artifacts[name].key[:8])}</code>"), settings(name, artifacts[name])]
        for name in STAGES
        if name in artifacts
    ]
    told = note(
        "The artifacts that this page is made of: the first digits of their keys, and the settings that are not the "
        "defaults."
    )
    return section("Where this comes from", told, table(["stage", "key", "settings"], [("", rows)], "stages"))


def settings(stage: str, artifact: Artifact) -> str:
    """The parameters in an artifact's manifest that differ from the stage's defaults, as prep.toml would have them."""
    defaults = STAGES[stage].load().Params().model_dump(mode="json")
    given = artifact.manifest["parameters"]
    differ = {name: value for name, value in sorted(given.items()) if name not in defaults or defaults[name] != value}
    return (
        ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in differ.items()) or "defaults"
    )

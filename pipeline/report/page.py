"""The page of a publication, report.html: can these negatives be trusted, and is the new reranker better?

A pure function of the artifacts: no times, paths or host names, so the same artifacts give the same bytes. The words
stand in templates/, the numbers come from here.
"""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.report import examples
from pipeline.report.charts import build_histogram
from pipeline.report.funnel import list_funnel_rows
from pipeline.report.quality import build_headline, build_quality
from pipeline.report.templating import render_template
from pipeline.workflow.artifact_store import Artifact
from pipeline.workflow.graph import PIPELINE
from pipeline.workflow.stage import Stage
from stages.embedding.encoder_fit import EncoderFit, describe_encoder_fit
from stages.mining.explain import describe_estimate, get_reason_text
from stages.mining.mask import REASON_PRECEDENCE, RULE_PLACEHOLDER
from stages.mining.threshold_rules import THRESHOLD_RULES, describe_rule


def render_report(artifacts: Mapping[str, Artifact], ranking: str | None = None) -> str:
    """The whole page as one HTML file that loads nothing, from a committed artifact of each step of the pipeline.

    `ranking` is the one that is published with it; by default that of the verdict.
    """
    metrics = json.loads((artifacts["evaluate"].folder / "metrics.json").read_text(encoding="utf-8"))
    retrievers = json.loads((artifacts["retrievers"].folder / "retrievers.json").read_text(encoding="utf-8"))
    return render_template(
        "report.html",
        headline=build_headline(metrics, ranking or metrics["verdict"]["test"]["published"]),
        encoder_warning=describe_encoder_fit(
            EncoderFit.from_dict(artifacts["search"].summary["encoder_fit"]), artifacts["search"].summary["model"]
        ),
        quality=build_quality(metrics, retrievers),
        funnel=build_funnel(artifacts["pairs"].summary),
        negatives=build_negatives(artifacts),
        examples=examples.sample_queries(artifacts),
        provenance=[
            {
                "step": stage.name,
                "key": artifacts[stage.name].key[:8],
                "settings": format_changed_settings(stage, artifacts[stage.name]),
            }
            for stage in PIPELINE
        ],
    )


def build_funnel(summary: Mapping[str, Any]) -> dict[str, Any]:
    """From rows to queries and documents, with each loss: the same rows as on the terminal."""
    rows: list[dict[str, Any]] = [
        {
            "label": row.label,
            "is_part": row.is_part,
            "number": f"{row.count:,}".replace("-", "−"),
            "share": abs(row.count) / row.whole if row.whole else None,
            "note": "",
        }
        for row in list_funnel_rows(dict(summary))
    ]
    per_query = summary["positives_per_query"]
    mean = {"label": "positives a query", "is_part": False, "number": f"{per_query['mean']:.2f}", "share": None}
    rows.append({**mean, "note": f"at most {per_query['max']}"})
    return {"rows": rows, "notes": summary["notes"]}


def build_negatives(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The results of the mask, the number of negatives, and the distribution of the scores."""
    mask, sample = artifacts["mask"], artifacts["sample"].summary
    by_source = sorted(artifacts["search"].summary["candidates_by_source"].items())
    scores = examples.compute_score_histogram(artifacts)
    chart = scores and build_histogram(
        "Candidates of train queries, by the retriever's score",
        *scores.score_range,
        scores.series,
        scores.make_markers(sample["hardness"]),
    )
    return {
        "sources": ", ".join(f"{count:,} by {name}" for name, count in by_source),
        "encoder": str(artifacts["encode"].summary["model"]).rstrip("/").rsplit("/", 1)[-1],
        "rule": mask.summary["rule"],
        "rule_text": describe_mask_rule(mask),
        "verdicts": list_verdict_rows(mask.summary),
        "sample": {"expected_false_negative_rate": None, **sample},
        "estimate": [f"{line[0].upper()}{line[1:]}." for line in describe_estimate(mask.summary.get("estimate"))],
        "histogram": chart,
    }


def list_verdict_rows(mask_summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each reason that was given, in the order in which the mask checks them."""
    rule, verdicts = mask_summary["rule"], mask_summary["verdicts"]
    order = [rule if reason == RULE_PLACEHOLDER else reason for reason, _ in REASON_PRECEDENCE] + ["kept"]
    found = [(reason, verdict, count) for verdict, counts in verdicts.items() for reason, count in counts.items()]
    found.sort(key=lambda row: (order.index(row[0]) if row[0] in order else len(order), row))
    total = sum(count for _, _, count in found)
    return [
        {
            "reason": reason,
            "text": get_reason_text(reason),
            "verdict": verdict,
            "count": count,
            "share": f"{count / total:.1%}" if count >= 0.0005 * total else "<0.1%",
        }
        for reason, verdict, count in found
    ]


def describe_mask_rule(mask: Artifact) -> str:
    """What the mask's rule accepts, in words, with its source."""
    name, threshold = mask.summary["rule"], mask.summary["threshold"]
    if name not in THRESHOLD_RULES:
        return f"candidates that it does not take for positives (threshold {threshold})"
    given = mask.manifest["parameters"]
    words = describe_rule(name, threshold, tuple(given["rank_window"]))
    return f"{words} ({THRESHOLD_RULES[name].source})"


def format_changed_settings(stage: Stage, artifact: Artifact) -> str:
    """The parameters in an artifact's manifest that differ from the step's defaults, as prep.toml would have them."""
    defaults = stage.load_module().Params().model_dump(mode="json")
    given = artifact.manifest["parameters"]
    differ = {name: value for name, value in sorted(given.items()) if name not in defaults or defaults[name] != value}
    return (
        ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in differ.items()) or "defaults"
    )

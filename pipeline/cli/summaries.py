"""What each step reports, in lines and tables for a person."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.cli.output import ResultTable
from pipeline.workflow.artifact_store import Artifact

Parts = list[str | ResultTable]


def format_summary(step: str, artifacts: Mapping[str, Artifact]) -> Parts:
    """What a step reports; `artifacts` are those of its run, by step."""
    return _FORMATTERS[step](artifacts[step], artifacts)


def _format_pairs(artifact: Artifact, _: Mapping[str, Artifact]) -> Parts:
    from pipeline.report.funnel import format_funnel

    return ["", *format_funnel(artifact.summary)]


def _format_encode(artifact: Artifact, _: Mapping[str, Artifact]) -> Parts:
    summary = artifact.summary
    encoders = {summary["model"]: summary} | summary.get("extra_encoders", {})
    lines = []
    for name, one in encoders.items():
        lines.append(f"encode: {one['n_encoded']:,} texts encoded with {name}; {one['n_cached']:,} were stored already")
        lines += [f"  {line}" for line in describe_fit_lines(one["encoder_fit"], name)]
    return [*lines]


def describe_fit_lines(content: Mapping[str, Any], model: str) -> list[str]:
    """Whether the encoder `model` fits the table, and how many documents it cuts, by `encoder_fit` of a summary."""
    from stages.embedding.encoder_fit import EncoderFit, describe_encoder_fit, describe_truncation

    fit = EncoderFit.from_dict(content)
    return [line for line in (describe_encoder_fit(fit, model), describe_truncation(fit)) if line]


def _format_search(artifact: Artifact, _: Mapping[str, Artifact]) -> Parts:
    summary = artifact.summary
    by_source = ", ".join(f"{count:,} by {name}" for name, count in summary["candidates_by_source"].items())
    lines = [f"search: {summary['candidates']:,} candidates for {summary['queries']:,} queries ({by_source})"]
    if mrr := summary.get("mrr_at_10"):
        values = ", ".join(f"{name} {value:.3f}" for name, value in mrr.items())
        lines.append(f"  how high the first positive stands, over all queries that have one: MRR@10 {values}")
    lines += [f"  {line}" for line in describe_fit_lines(summary["encoder_fit"], summary["model"])]
    for name, index in summary.get("faiss_indexes", {}).items():
        recall = f"recall@{index['recall_at']} {index['recall']:.3f}"
        lines.append(f"  {name}: FAISS index {index['index']} ({index['parameters'] or 'no parameters'}), {recall}")
    return [*lines]


def _format_features(artifact: Artifact, _: Mapping[str, Artifact]) -> Parts:
    estimate = artifact.summary["estimate"]
    lines = [f"features: {artifact.summary['n_pairs']:,} pairs of a query and a candidate"]
    if estimate:
        models = {
            "pretrained": "the pretrained model",
            "pretrained+table": "the pretrained model and one of this table",
        }
        lines[0] += f"; false negatives are estimated by {models[estimate['source']]}"
    return [*lines]


def _format_verify(artifact: Artifact, _: Mapping[str, Artifact]) -> Parts:
    summary = artifact.summary
    lines = []
    if verifier := summary.get("verifier"):
        use = "its scores are used" if verifier["is_used"] else f"its scores are not used: {verifier['reason']}"
        lines.append(
            f"verify: the verifier read {verifier.get('scored', 0) + verifier.get('cached', 0):,} pairs; {use}"
        )
    if judge := summary.get("llm_judge"):
        lines.append(
            f"verify: the LLM judge answered on {judge['cached'] + judge['answered']:,} pairs ({judge['cached']:,} of "
            f"them in earlier runs) and found {judge['relevant']:,} relevant; {judge['failed']:,} requests failed"
        )
    if summary.get("skipped_reason"):
        lines.append(f"verify: nothing was scored: {summary['skipped_reason']}")
    return [*lines]


def _format_mask(artifact: Artifact, _: Mapping[str, Artifact]) -> Parts:
    from stages.mining.explain import describe_estimate, get_reason_text

    summary = artifact.summary
    rows = [
        [verdict, reason, f"{count:,}", get_reason_text(reason)]
        for verdict, counts in summary["verdicts"].items()
        for reason, count in counts.items()
    ]
    table = ResultTable(f"mask: rule {summary['rule']}", ["verdict", "reason", "candidates", "the candidate"], rows)
    return [table, *describe_estimate(summary.get("estimate"))]


def _format_sample(artifact: Artifact, artifacts: Mapping[str, Artifact]) -> Parts:
    summary = artifact.summary
    fill = "" if summary["fill_rate"] is None else f", {summary['fill_rate']:.1%} of {summary['n_requested']} each"
    hardness = "" if summary["hardness"] is None else f"; mean retriever score {summary['hardness']:.3f}"
    lines = [f"sample: {summary['negatives']:,} negatives for {summary['queries']:,} train queries{fill}{hardness}"]
    skipped = {name: count for name, count in summary["skipped_queries"].items() if count}
    if skipped:
        lines.append(
            "  not in mined.jsonl: " + ", ".join(f"{n:,} ({name.replace('_', ' ')})" for name, n in skipped.items())
        )
    if summary["expected_false_negative_rate"] is not None:
        estimate = artifacts["mask"].summary.get("estimate") if "mask" in artifacts else None
        accepted_rate = estimate["max_false_negatives"] if estimate else None
        lines.append(format_expected_false_negatives(summary, accepted_rate))
    return [*lines]


def format_expected_false_negatives(summary: Mapping[str, Any], accepted_rate: float | None) -> str:
    """How many of the negatives written are expected to be false; `accepted_rate`: what the learned mask accepts."""
    rate, n_weighted = summary["expected_false_negative_rate"], summary["n_weighted_negatives"]
    line = f"false ones expected among the {summary['negatives']:,} negatives: {rate:.2%}"
    if n_weighted:
        return (
            f"{line}. The mask would leave out {n_weighted:,} of them: relabel = weight keeps them, with a weight "
            "(neg_weights), beyond the rate that is accepted"
        )
    if accepted_rate is not None and rate > 1.02 * accepted_rate:
        return (
            f"{line}, more than the {accepted_rate:.1%} accepted. The mask holds it for the hardest negatives, and "
            "others were taken, by near-duplicates, hub_cap, prefer_category, sampling or source_quotas"
        )
    return line


def _format_train(artifact: Artifact, _: Mapping[str, Artifact]) -> Parts:
    summary = artifact.summary
    lines = [f"train: {summary['n_queries']:,} queries, {summary['n_steps']:,} steps"]
    if summary["loss"] is not None:
        lines[0] += f", loss {summary['loss']:.4g} (chance: {summary['chance_loss']:.4g})"
    dev = [f"{name.removeprefix('dev_')} {value:.4f}" for name, value in summary.items() if name.startswith("dev_")]
    if dev:
        lines.append(
            f"  epoch {summary['best_epoch']} is kept, the best of {summary['n_dev_queries']:,} dev queries: "
            + ", ".join(dev)
        )
    return [*lines]


def _format_evaluate(artifact: Artifact, _: Mapping[str, Artifact]) -> Parts:
    from stages.evaluation.tables import format_metrics_table

    metrics = json.loads((artifact.folder / "metrics.json").read_text(encoding="utf-8"))
    n_queries, top_k = metrics["candidate_lists"]["test"]["n_queries"], metrics["parameters"]["top_k"]
    table = format_metrics_table(metrics)
    drawn = [ResultTable(f"test: {n_queries:,} queries, the retriever's best {top_k} reranked", table[0], table[1:])]
    verdict = metrics["verdict"]["test"]
    return [*(drawn if table else []), *_describe_raw(metrics), *verdict["reasons"], *verdict["advice"]]


def _describe_raw(metrics: Mapping[str, Any]) -> list[str]:
    """What near duplicates of positives change, in one line; empty if the lists hold none."""
    count = metrics["candidate_lists"]["test"]["n_near_positives"]
    if not count:
        return []
    from stages.evaluation.tables import SYSTEM_LABELS

    figures = [f"{SYSTEM_LABELS[system]} {values['nDCG@10']:.3f}" for system, values in metrics["raw"]["test"].items()]
    return [
        f"{count:,} candidates that are near duplicates of a positive are left out of the lists. As misses they "
        f"would make nDCG@10: {', '.join(figures)}"
    ]


def _format_retrievers(artifact: Artifact, artifacts: Mapping[str, Artifact]) -> Parts:
    """All tables; one line in a run that measures the reranker too."""
    from stages.core.schemas import SPLITS
    from stages.evaluation.retrievers import describe_retrievers, list_retriever_caveats
    from stages.evaluation.tables import format_metrics_table

    found = json.loads((artifact.folder / "retrievers.json").read_text(encoding="utf-8"))
    if "evaluate" in artifacts:
        return [describe_retrievers(found)]
    titles = {
        "corpus": f"the whole corpus: the best {found['depth']:,} of each retriever",
        "lists": f"fixed lists: the embedder's best {found['parameters']['top_k']:,}, as for a reranker",
    }
    parts: Parts = []
    for view, title in titles.items():
        tables = {split: format_metrics_table(found[view], split) for split in SPLITS}
        rows = [
            [f"{split}, {found['queries'][split]['n_queries']:,} queries" if number == 0 else "", *row]
            for split, table in tables.items()
            for number, row in enumerate(table[1:])
        ]
        if rows:
            header = next(table[0] for table in tables.values() if table)
            parts.append(ResultTable(title, ["", *header], rows))
    return [*parts, describe_retrievers(found), *list_retriever_caveats(found)]


def format_gate_verdict(verdict: Mapping[str, Any]) -> str:
    """The gate's finding in one line."""
    if verdict["difference"] is None:
        return "against the published reranker: there is no test query to compare on"
    from stages.statistics.bootstrap import format_interval

    interval = "" if verdict["low"] is None else f" {format_interval(verdict['low'], verdict['high'], '+.4f')}"
    means = f"{verdict['published_mean']:.4f} -> {verdict['new_mean']:.4f}"
    return (
        f"against the published reranker: {verdict['metric']} {means}, difference {verdict['difference']:+.4f}"
        f"{interval}: {verdict['verdict']}"
    )


_FORMATTERS: dict[str, Callable[[Artifact, Mapping[str, Artifact]], Parts]] = {
    "pairs": _format_pairs,
    "encode": _format_encode,
    "search": _format_search,
    "features": _format_features,
    "verify": _format_verify,
    "mask": _format_mask,
    "sample": _format_sample,
    "train": _format_train,
    "retrievers": _format_retrievers,
    "evaluate": _format_evaluate,
}

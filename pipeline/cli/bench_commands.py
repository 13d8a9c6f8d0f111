"""`prep bench`: its commands and their options."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command_types import OrderedGroup, ParamsCommand, print_result

if TYPE_CHECKING:
    from stages.mining.estimator.holdout import KeptPositives


@click.group("bench", cls=OrderedGroup, short_help="what a mask leaks, measured on judged collections")
def bench_group() -> None:
    """Measure masks on collections whose judgements are known.

    \b
    Example:  prep bench negatives data/stackfaq data/bioasq
              prep bench downstream data/stackfaq
    """


@bench_group.command("negatives", cls=ParamsCommand, short_help="hide positives, mine, count what comes back")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--encoder", help="Encoder: a sentence-transformers or Hugging Face model. [default: prep's own]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of what is hidden.")
@click.option("--num-negatives", type=click.IntRange(min=1), default=8, show_default=True, help="Negatives a question.")
@click.option(
    "--max-queries",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="At most so many questions a folder are mined for, drawn by hash.",
)
@click.option(
    "--keep-positives",
    type=click.Choice(["half", "one"]),
    default="half",
    show_default=True,
    help="Known positives left a question: half of them, or one, as in most tables. The prior speaks alone then.",
)
@click.option(
    "--write-model", type=click.Path(path_type=Path, dir_okay=False),
    help="Fit the prior of the learned mask on these folders as well, and write it there.",
)  # fmt: skip
def bench_negatives_command(
    folders: tuple[Path, ...], encoder: str | None, seed: int, num_negatives: int, max_queries: int,
    keep_positives: "KeptPositives", write_model: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Hide some of each question's positives, mine under every rule, and count how many hidden ones are mined.

    FOLDERS hold queries.parquet (query_id, query), corpus.parquet (doc_id, text) and qrels.parquet (query_id, doc_id,
    relevance), or are BEIR folders. A folder that the shipped prior was fitted on is read with a prior of the others.

    \b
    Example:  prep bench negatives data/stackfaq data/bioasq
    """
    from pipeline.cli.bench_leak import run_leak_benchmark
    from stages.core.model_files import DEFAULT_ENCODER

    print_result(
        options,
        run_leak_benchmark(
            options,
            folders,
            seed,
            num_negatives,
            max_queries,
            keep_positives,
            encoder or DEFAULT_ENCODER,
            write_model,
        ),
    )


@bench_group.command(
    "downstream", cls=ParamsCommand, module="stages.bench.downstream",
    short_help="train a small reranker under each rule, and test it",
)  # fmt: skip
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
def bench_downstream_command(folders: tuple[Path, ...], **options: Any) -> None:
    """Train the same small reranker on the negatives of each rule, and measure it on questions that it never saw.

    FOLDERS are as for `prep bench negatives`. Half of the positives of the train questions are hidden; in test all
    judgements count. Questions, positives, pairs, steps and seeds are the same for all rules. The rerankers rank the
    retriever's best documents, ties count against them, differences come with a 95 % interval from a paired bootstrap.
    What is trained is kept in the workspace, so the command can be stopped and repeated.

    \b
    Examples:  prep bench downstream data/stackfaq data/bioasq
               prep bench downstream data/bioasq --rule naive --rule learned --seeds 5
    """
    from pipeline.cli.bench_downstream import run_downstream_benchmark
    from pipeline.workflow.config import PipelineSettings
    from stages.bench.downstream import Params

    given = {name: options[name] for name in Params.model_fields if options[name] not in (None, ())}
    settings = PipelineSettings({"bench": given}, {("bench", name): f"--{name.replace('_', '-')}" for name in given})
    print_result(options, run_downstream_benchmark(options, folders, settings.validate_section("bench", Params)))

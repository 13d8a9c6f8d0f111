"""`prep bench`: its commands and their options."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command_types import OrderedGroup, ParamsCommand, print_result

if TYPE_CHECKING:
    from stages.mining.estimator.holdout import KeptPositives


@click.group("bench", cls=OrderedGroup, short_help="what a mask leaks, measured on judged collections")
def bench_group() -> None:
    """Measure masks on judged collections.

    \b
    Example:  prep bench negatives data/stackfaq data/bioasq
              prep bench downstream data/stackfaq
    """


@bench_group.command("negatives", cls=ParamsCommand, short_help="hold out positives, mine, count leaks")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--encoder", help="Encoder: a sentence-transformers or Hugging Face model. [default: prep's own]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the held-out positives.")
@click.option(
    "--num-negatives", type=click.IntRange(min=1), default=8, show_default=True, help="Negatives per question."
)
@click.option(
    "--max-queries",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="At most this many queries of each folder to mine for, sampled by hash.",
)
@click.option(
    "--keep-positives",
    type=click.Choice(["half", "one"]),
    default="half",
    show_default=True,
    help="Known positives to keep for each question: half, or one. With one, only the pretrained model is used.",
)
@click.option(
    "--write-model", type=click.Path(path_type=Path, dir_okay=False),
    help="Also fit the pretrained model of the learned mask on these folders, and write it to this file.",
)  # fmt: skip
def bench_negatives_command(
    folders: tuple[Path, ...], encoder: str | None, seed: int, num_negatives: int, max_queries: int,
    keep_positives: "KeptPositives", write_model: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Hold out some of each question's positives, mine under every rule, and count the held-out ones that are mined.

    FOLDERS hold queries.parquet (query_id, query), corpus.parquet (doc_id, text) and qrels.parquet (query_id, doc_id,
    relevance), or are BEIR folders. For a folder that the pretrained model was fitted on, a model of the other folders
    is used.

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
    """Train the same small reranker on the negatives of each rule, and measure it on unseen questions.

    FOLDERS are as for `prep bench negatives`. Half of the positives of the train questions are held out; in test all
    labels count. Questions, positives, pairs, steps and seeds are the same for all rules. The rerankers rank the
    retriever's best documents; ties count against them. Differences have a 95 % interval from a paired bootstrap. The
    trained rerankers stay in the workspace, so the command can be stopped and repeated.

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

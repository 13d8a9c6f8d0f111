"""The command line. A command parses, builds parameters, calls one function and prints its result."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.cli.bench_commands import bench_group
from pipeline.cli.command_types import OrderedGroup, ParamsCommand, SettingsCommand, print_result
from pipeline.cli.exit_codes import run_with_exit_code
from pipeline.workflow.graph import PIPELINE
from stages.core.memory import limit_malloc_arenas

RUN_KEYS = ("seed", "device", "dtype")


@click.group(cls=OrderedGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="prep-reranker")
def prep() -> None:
    """From tables of questions and answers to a better reranker, with negatives that can be trusted.

    Each command first brings the steps before its own up to date, so `prep train` on an empty workspace does
    everything. Settings come from prep.toml (`prep init` writes one), then from --set and the options.

    \b
    Steps in order    settings     command
    pairs             [pairs]      build-pairs
    encode            [encode]     encode
    search            [search]     mine-negatives
    features          [mine]       mine-negatives
    verify            [verify]     mine-negatives
    mask              [mine]       mine-negatives
    sample            [mine]       mine-negatives
    train             [train]      train
    retrievers        [evaluate]   evaluate --retrievers (no other step needs it)
    evaluate          [evaluate]   evaluate
    gate              [refresh]    refresh runs all steps, and publishes

    \b
    Exit codes:  0 done, or nothing to do     3 a gate refused; `current` is untouched
                 1 a defect of prep's own    75 another run holds the workspace
                 2 the input, the settings or the environment is wrong
    """


def register_command(
    name: str,
    short_help: str,
    sections: tuple[str, ...] = (),
    run_keys: tuple[str, ...] = (),
    *,
    uses_executor: bool = False,
) -> Callable[[Callable[..., None]], SettingsCommand]:
    """Register a command of `prep` whose flags are the keys of `sections`, and `run_keys` of [run]."""

    def register(function: Callable[..., None]) -> SettingsCommand:
        made = click.command(name, cls=SettingsCommand, short_help=short_help)(function)
        prep.add_command(made)
        made.sections, made.run_keys, made.uses_executor = sections, run_keys, uses_executor
        return made

    return register


@prep.command("init", cls=ParamsCommand, short_help="write a commented prep.toml")
@click.option("--force", is_flag=True, help="Overwrite an existing prep.toml.")
def init_command(force: bool, **common: Any) -> None:
    """Write a commented prep.toml: every key, its default and its meaning.

    \b
    Example:  prep init && $EDITOR prep.toml && prep refresh
    """
    from pipeline.cli.build import write_config

    print_result(common, write_config(common["config"] or Path("prep.toml"), force))


@register_command("build-pairs", "tables of questions and answers -> pairs", ("pairs",))
@click.argument("files", nargs=-1)
def build_pairs_command(files: tuple[str, ...], **options: Any) -> None:
    """Make queries, documents and judgements from tables of questions and answers.

    FILES are CSV, TSV, JSONL, JSON, Parquet, Arrow, Excel (.xlsx) or gzip'd text; globs in quotes; - is stdin (CSV,
    or JSONL where the first byte is a brace). Columns are recognised by name or named by flags; every row that is not
    used stands in rejects.parquet with its file, row and reason.

    \b
    Examples:  prep build-pairs faq.csv
               prep build-pairs 'exports/*.csv.gz' --question title --document body --group thread
               prep build-pairs --database sqlite:///kb.db --sql 'select question, answer from faq'
               zcat dump.gz | prep build-pairs -
    """
    from pipeline.cli.build import build_stage

    print_result(options, build_stage("pairs", ["pairs"], add_tables(options, files)))


@register_command("encode", "embed queries and corpus", ("encode",), ("device", "dtype"), uses_executor=True)
def encode_command(**options: Any) -> None:
    """Encode the queries and the corpus. Texts that this encoder has encoded before are not encoded again.

    \b
    Example:  prep encode --model BAAI/bge-small-en-v1.5 --query-prompt 'query: '
    """
    from pipeline.cli.build import build_stage

    print_result(options, build_stage("encode", ["encode"], options))


@register_command(
    "mine-negatives",
    "hard negatives behind a false-negative mask",
    ("search", "mine", "verify"),
    ("seed", "device"),
    uses_executor=True,
)
def mine_negatives_command(**options: Any) -> None:
    """Search, exclude possible false negatives, and write mined.jsonl.

    The scored candidates and a verdict with its reason for each of them are kept: another mask or another number of
    negatives takes seconds and loads no model.

    \b
    Examples:  prep mine-negatives --mask perc --threshold 0.9
               prep mine-negatives --num-negatives 15 --sampling random
               prep mine-negatives --sources dense --sources bm25:10-110 --sources random:20
    """
    from pipeline.cli.build import build_stage

    print_result(options, build_stage("sample", ["search", "mine", "verify"], options))


@register_command("train", "train the reranker on the mined negatives", ("train",), RUN_KEYS, uses_executor=True)
def train_command(**options: Any) -> None:
    """Train the reranker on the mined queries; resumes where a killed run stopped.

    \b
    Example:  prep train --base cross-encoder/ms-marco-MiniLM-L6-v2 --epochs 1
    """
    from pipeline.cli.build import build_stage

    print_result(options, build_stage("train", ["train"], options))


@register_command(
    "evaluate",
    "measure the reranker against BM25 and the embedder",
    ("evaluate",),
    ("seed", "device", "dtype"),
    uses_executor=True,
)
@click.option(
    "--retrievers",
    is_flag=True,
    help="Measure BM25, the embedder and their fusion alone, on train, dev and test. Trains nothing.",
)
def evaluate_command(retrievers: bool, **options: Any) -> None:
    """Measure BM25, the embedder, the base and the trained reranker on the same fixed candidate lists.

    Ties count against each system. Differences to the embedder have a 95 % interval from a paired bootstrap by group.

    \b
    Examples:  prep evaluate --top-k 100
               prep evaluate --retrievers
    """
    from pipeline.cli.build import build_stage

    print_result(options, build_stage("retrievers" if retrievers else "evaluate", ["evaluate"], options))


@register_command("refresh", "run all stale steps, then publish", ("refresh",), RUN_KEYS, uses_executor=True)
@click.option(
    "--force",
    is_flag=True,
    help="Publish the new reranker even if it is worse than the published one, or than the embedder.",
)
def refresh_command(force: bool, **options: Any) -> None:
    """Bring everything up to date, and publish it if the new reranker is not worse. Safe to call from cron.

    Only what is stale is run. Old and new reranker are scored on the same test questions; one that is significantly
    worse, or that collapsed, is not published (exit 3). One that is significantly worse than the embedder is left out
    of the publication: the embedder's ranking is published. `current` is swapped in one atomic step.

    \b
    Example:  prep refresh --config /srv/faq/prep.toml --workspace /srv/faq/work
    """
    from pipeline.cli.build import run_refresh as run

    print_result(options, run(options, force))


@register_command("plan", "time, memory and disk that each step will take")
@click.argument("files", nargs=-1)
@click.option(
    "--until",
    type=click.Choice([stage.name for stage in PIPELINE]),
    help="Plan for this step and those that it needs. [default: all that a refresh runs]",
)
def plan_command(files: tuple[str, ...], until: str | None, **options: Any) -> None:
    """Estimate time, memory and disk of each step that would run, and list settings that would change the time.

    Builds the pairs and counts them. The speed of this machine comes from the last runs in the workspace or, without
    any, from measurements of a few seconds. FILES are those of build-pairs.

    \b
    Examples:  prep plan
               prep plan --until sample
               prep plan --set train.epochs=1
    """
    from pipeline.cli.plan import plan_steps

    print_result(options, plan_steps(add_tables(options, files), until))


@register_command("status", "what is there, what is stale and why")
def status_command(**options: Any) -> None:
    """List the artifacts, their age, and why some are stale. Runs nothing.

    \b
    Example:  prep status --json
    """
    from pipeline.cli.inspect import report_status as run

    print_result(options, run(options))


@register_command("show", "one query, and why each candidate is a negative or is not")
@click.argument("query")
@click.option("--top", default=20, show_default=True, type=click.IntRange(min=0), help="How many candidates to print.")
def show_command(query: str, top: int, **options: Any) -> None:
    """Print a query with its positives and candidates: rank, score, verdict, reason, text, and if it is in mined.jsonl.

    QUERY is a query_id, a query's text, or a part of it that only one query has.

    \b
    Example:  prep show 'how long do refunds take'
    """
    from pipeline.cli.inspect import show_query as run

    print_result(options, run(options, query, top))


@register_command("calibrate", "how many negatives are expected to be false, by budget and by rule", uses_executor=True)
def calibrate_command(**options: Any) -> None:
    """Print the trade-off of the learned mask: for several values of max_false_negatives, the expected share of false
    negatives, the hardness and the number of negatives; and the same for the fixed rules. It uses the existing
    candidates, and trains nothing.

    \b
    Example:  prep calibrate --set mine.num_negatives=7
    """
    from pipeline.cli.inspect import calibrate_mask as run

    print_result(options, run(options))


@register_command("audit", "positives that may be wrong", uses_executor=True)
@click.option(
    "--top", default=10, show_default=True, type=click.IntRange(min=0), help="How many to print of each kind."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all findings to this file: CSV, JSON Lines or Parquet, by its extension (.csv, .jsonl, .parquet).",
)
@click.option(
    "--max-share",
    type=click.FloatRange(0, 1),
    help="Exit with 3 if a larger share of the positives is listed.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def audit_command(top: int, out: Path | None, max_share: float | None, force: bool, **options: Any) -> None:
    """List positives that may be wrong. Changes nothing.

    low_ranked: scored like a random document, with few query words; outranked: its hardest negatives rank higher;
    inconsistent: the same question has other positives, and none is similar. To correct labels, fill in the label
    column of the file that --out writes (positive or negative; empty is undecided), and set `label_overrides` under
    [pairs] to that file. `drop_positives` under [mine] leaves the listed positives out of the training file.

    \b
    Examples:  prep audit --top 20
               prep audit --out doubtful.csv
               prep audit --max-share 0.02
    """
    from pipeline.cli.inspect import audit_positives as run

    print_result(options, run(options, top, out, max_share, force))


prep.add_command(bench_group)


@register_command("gc", "delete what no publication uses")
@click.option("--keep", type=click.IntRange(min=1), help="Publications to keep. [default: keep of [refresh]]")
@click.option("--dry-run", is_flag=True, help="Only count what would be deleted.")
def gc_command(keep: int | None, dry_run: bool, **options: Any) -> None:
    """Delete what no publication uses. The newest publications are kept, and the last training that was interrupted.

    \b
    Examples:  prep gc --keep 1
               prep gc --dry-run
    """
    from pipeline.cli.build import run_gc as run

    print_result(options, run(options, keep, dry_run))


def add_tables(options: dict[str, Any], files: tuple[str, ...]) -> dict[str, Any]:
    """The options of a command with its FILES before the tables that its flags name."""
    from pipeline.workflow.config import GivenSetting

    if not files:
        return options
    others = [one for one in options["given"] if (one.section, one.name) != ("pairs", "tables")]
    tables = [one.value for one in options["given"] if one not in others]
    value = (*files, *(table for several in tables for table in several))
    return {**options, "given": [*others, GivenSetting("pairs", "tables", value, "FILES")]}


def main() -> None:
    """The entry point."""
    limit_malloc_arenas()
    sys.exit(run_with_exit_code(lambda: prep.main(standalone_mode=False)))


if __name__ == "__main__":
    main()

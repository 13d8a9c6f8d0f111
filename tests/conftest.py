"""What several tests share: a tiny model that needs no download, a slice of the sample, and `prep` as a process."""

import atexit
import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # run in the background by a shell: tests send it all the same
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("prep", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("prep")

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data_samples"
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers x 32 with random weights and a vocabulary of letters: an encoder, and a base to train."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'-"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,  # so that random features tell texts apart and training gets somewhere in seconds
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 80 rows of the sample's questions."""
    path = tmp_path_factory.mktemp("table") / "faq.csv"
    with (SAMPLE / "questions.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row, _ in zip(csv.reader(file), range(81), strict=False)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """So small a model is faster on one thread; and only runs with the same number of threads give the same bytes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def training_inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the training step reads, of 25 queries that a tiny model can learn."""
    from tests.small_training import make_inputs

    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def training_params(tiny_model: Path) -> Any:
    """The settings of such a training."""
    from tests.small_training import settings as training_settings

    return training_settings(tiny_model)


SETTINGS = """
[pairs]
tables = ["faq.csv"]
dev_ratio = 0.2
test_ratio = 0.3
[encode]
model = "{model}"
[search]
top_k = 20
[mine]
num_negatives = 3
mask = "window"
rank_window = [1, 19]
near_duplicate_similarity = 1.0
[train]
base = "{model}"
epochs = 3
num_negatives = 3
max_length = 48
learning_rate = 5e-3
[evaluate]
top_k = 10
[run]
dtype = "float32"
"""


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, small_table: Path) -> "Project":
    """A folder with a small table and a prep.toml that trains the tiny model in seconds; nothing has run in it."""
    return new_project(tmp_path, tiny_model, small_table)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, small_table: Path) -> Path:
    """The workspace of such a folder after one undisturbed `prep refresh`: to compare with, or to copy. Read only."""
    project = new_project(tmp_path_factory.mktemp("finished"), tiny_model, small_table)
    # by a new interpreter: it hashes strings by another seed than the forks that are compared with it
    command = [sys.executable, "-m", "pipeline.cli.main", "refresh", "-q"]
    done = subprocess.run(command, cwd=project.folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return project.work


def new_project(folder: Path, model: Path, table: Path) -> "Project":
    """Write faq.csv and prep.toml into a folder."""
    (folder / "faq.csv").write_bytes(table.read_bytes())
    (folder / "prep.toml").write_text(SETTINGS.format(model=model))
    return Project(folder)


class Project:
    """A folder with a prep.toml, and `prep` run in it as a real process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"

    def prep(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `prep` to its end."""
        return run_prep(*arguments, cwd=self.folder)

    def start(self, *arguments: str) -> multiprocessing.process.BaseProcess:
        """Start `prep` and return at once."""
        return _start(arguments, self.folder, os.devnull, os.devnull)

    def set(self, section: str, name: str, value: str) -> None:
        """Change one key of prep.toml."""
        path = self.folder / "prep.toml"
        lines = path.read_text().splitlines()
        if f"[{section}]" not in lines:
            lines.append(f"[{section}]")
        start = lines.index(f"[{section}]") + 1
        kept = [line for line in lines[start:] if not line.startswith(f"{name} =") or "[" in line[:1]]
        path.write_text("\n".join([*lines[:start], f"{name} = {value}", *kept]))

    def events(self) -> list[dict[str, Any]]:
        """The whole lines of events.jsonl so far: one that crosses a page can be seen while half of it is written."""
        path = self.work / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


# Importing torch, transformers and sentence-transformers takes longer than most of what is tested. So each `prep` is
# a process of its own that is forked from one which did nothing but import these.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.libraries"])


def run_prep(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `prep` as a process; stdout and stderr are captured as text."""
    with TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        process = _start(arguments, cwd, str(out), str(err))
        process.join(600)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"prep {' '.join(arguments)}:\n{err.read_text()}")
        return subprocess.CompletedProcess(list(arguments), process.exitcode, out.read_text(), err.read_text())


def _start(arguments: tuple[str, ...], cwd: Path, out: str, err: str) -> multiprocessing.process.BaseProcess:
    process = _FORKS.Process(target=_prep, args=(arguments, cwd, out, err, environment()))
    process.start()
    return process


def _prep(arguments: tuple[str, ...], cwd: Path, out: str, err: str, environment: dict[str, str]) -> None:
    """What `python -m pipeline.cli.main` does, with its output in files."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in enumerate((os.devnull, out, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.argv = ["prep", *arguments]
    from pipeline.cli.main import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # a fork ends without them


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


Prep = Callable[..., subprocess.CompletedProcess[str]]

"""Installed libraries: their versions, which enter an artifact's key, and their log level."""

import importlib.metadata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger


def get_library_versions(names: Iterable[str]) -> dict[str, str]:
    """Distribution name -> its version, or "absent" if it is not installed (faiss-gpu instead of faiss-cpu, say)."""
    return {name: _get_library_version(name) for name in names}


def _get_library_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


@contextmanager
def silence_huggingface_logging() -> Iterator[None]:
    """Hide the progress bars and warnings of the Hugging Face libraries; their errors are still logged."""
    import datasets
    from transformers.utils import logging

    sentence_transformers_logger = getLogger("sentence_transformers")
    transformers_level, sentence_transformers_level, transformers_bars_enabled = (
        logging.get_verbosity(),
        sentence_transformers_logger.level,
        logging.is_progress_bar_enabled(),
    )
    datasets_bars_disabled = datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    sentence_transformers_logger.setLevel(ERROR)
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(transformers_level)
        sentence_transformers_logger.setLevel(sentence_transformers_level)
        if transformers_bars_enabled:
            logging.enable_progress_bar()
        if not datasets_bars_disabled:
            datasets.enable_progress_bars()

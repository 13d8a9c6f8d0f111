"""The versions of installed libraries, which enter an artifact's key and must be the same on every machine of a run."""

import importlib.metadata
from collections.abc import Iterable


def get_library_versions(names: Iterable[str]) -> dict[str, str]:
    """Distribution name -> its version, or "absent" if it is not installed (faiss-gpu instead of faiss-cpu, say)."""
    return {name: _get_library_version(name) for name in names}


def _get_library_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"

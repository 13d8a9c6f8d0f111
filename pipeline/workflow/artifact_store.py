"""The workspace on disk: artifacts under keys, committed atomically and verified whenever they are read."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from stages.core.errors import InputError, WorkspaceBusyError
from stages.core.files import file_digest, fsync_path, write_durably

MANIFEST_FILE = "manifest.json"
WORKSPACE_MARKER_FILE = "prep-workspace"
"""A file that marks a folder as a workspace and holds the version of its layout. A folder that holds other files and no
marker is never changed."""
LAYOUT_VERSION = "2"
"""The names of steps, files and columns. Version 1 (prep 0.1) wrote an empty marker."""
_LAYOUT_1_STEPS = ("evidence", "compose")


@dataclass(frozen=True)
class Artifact:
    """One committed result of a stage: its folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        """The hash of everything that the result depends on."""
        return str(self.manifest["key"])

    @property
    def summary(self) -> dict[str, Any]:
        """The counts that the stage reported."""
        summary: dict[str, Any] = self.manifest["summary"]
        return summary

    @property
    def is_complete(self) -> bool:
        """Whether the stage finished all of its work; an incomplete artifact is built again."""
        return bool(self.summary.get("complete", True))

    def digest_output(self, output: str) -> str:
        """The digest of one output, a file or a folder."""
        files: dict[str, str] = self.manifest["files"]
        return digest_json({name: d for name, d in files.items() if name == output or name.startswith(output + "/")})


def digest_json(value: Any) -> str:
    """xxh3-128 of a JSON-able value in its canonical form."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(canonical.encode())


def digest_folder(folder: Path) -> dict[str, str]:
    """Relative path -> digest of every file under `folder`, except its manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files if path != folder / MANIFEST_FILE}


class UnwritableWorkspaceError(InputError):
    """The workspace can't be written: its permissions, a file system mounted read-only, or a full disk."""

    def __init__(self, root: Path, error: OSError) -> None:
        super().__init__(
            f"the workspace {root} can't be written ({error.strerror}). Name another with --workspace, fix its "
            "permissions, or free space."
        )


class Workspace:
    """A folder that holds everything prep makes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = root / "runs"
        self.published = root / "published"
        self.current = root / "current"
        self.vectors = root / "vectors"
        self.scores = root / "verifier_scores"
        self.scratch = root / "scratch"
        self.logs = root / "logs"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the workspace for one run. The kernel frees the lock of a dead process.

        Raises `WorkspaceBusyError` at once if another process holds it, `UnwritableWorkspaceError`, and `InputError`
        for a folder that is no workspace.
        """
        from filelock import FileLock, Timeout

        self._initialise()
        holder_file = self.root / "lock.holder"
        file_lock = FileLock(self.root / "lock", timeout=0)
        try:
            file_lock.acquire()
        except Timeout:
            holder_name = holder_file.read_text(encoding="utf-8") if holder_file.exists() else "another process"
            raise WorkspaceBusyError(
                f"another run holds the workspace {self.root} ({holder_name}). Try again later."
            ) from None
        except OSError as error:
            raise UnwritableWorkspaceError(self.root, error) from error
        try:
            with contextlib.suppress(OSError):  # only for messages; it can fail on a full disk
                holder_file.write_text(
                    f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}", encoding="utf-8"
                )
            self._delete_leftovers()
            yield
        finally:
            holder_file.unlink(missing_ok=True)
            file_lock.release()

    def _initialise(self) -> None:
        """Make the folder a workspace; raises `InputError` if it holds other files."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            existing_names = [path.name for path in self.root.iterdir() if path.name != "lost+found"]
            if existing_names and WORKSPACE_MARKER_FILE not in existing_names:
                raise InputError(
                    f"{self.root} is no workspace of prep: it holds other files "
                    f"({', '.join(sorted(existing_names)[:3])}). "
                    "Name an empty or a new folder with --workspace."
                )
            if self.current.exists() and not self.current.is_symlink():
                raise InputError(f"{self.current} is not the link that prep makes. Move it away and run again.")
            self.require_current_layout()
            (self.root / WORKSPACE_MARKER_FILE).write_text(LAYOUT_VERSION + "\n", encoding="utf-8")
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"{self.root} is not a folder. Name another with --workspace.") from error
        except OSError as error:
            raise UnwritableWorkspaceError(self.root, error) from error

    def require_current_layout(self) -> None:
        """Raise `InputError` if another version of prep made this workspace: its steps and files have other names."""
        marker = self.root / WORKSPACE_MARKER_FILE
        version = marker.read_text(encoding="utf-8").strip() if marker.is_file() else None
        old_steps = [f"runs/{name}" for name in _LAYOUT_1_STEPS if (self.runs / name).is_dir()]
        # an empty marker without runs: a process was killed while it made the workspace
        if (version is not None and old_steps) or (version == "" and self.runs.is_dir()):
            found = ", ".join(old_steps) or f"its {WORKSPACE_MARKER_FILE} is empty"
            answers = self.root / "scores" / "judge.jsonl"
            keep = (
                f" To keep what an LLM judge was paid for, copy {answers} to verifier_scores/llm_judge.jsonl in the "
                "new workspace after its first run."
                if answers.is_file()
                else ""
            )
            raise InputError(
                f"the workspace {self.root} was made by prep 0.1 ({found}), whose files this version does not read. "
                f"Delete it, or name a new one with --workspace.{keep}"
            )
        if version not in (None, "", LAYOUT_VERSION):
            raise InputError(
                f"the workspace {self.root} was made by a newer prep (layout {version}; this one reads "
                f"{LAYOUT_VERSION}). Install that version, or name a new workspace with --workspace."
            )

    def _delete_leftovers(self) -> None:
        """Delete the unfinished files of a killed run."""
        for parent in (*self.runs.glob("*"), self.published):
            for leftover in parent.glob(".tmp-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        for leftover in (*self.root.glob(".current-*"), *self.root.glob(".tmp-*"), *self.root.glob("inputs/.tmp-*")):
            leftover.unlink(missing_ok=True)

    def get_artifact_folder(self, stage: str, key: str) -> Path:
        """The folder of the artifact of `stage` under `key`, which may not exist."""
        return self.runs / stage / key

    def find_artifact(self, stage: str, key: str) -> Artifact | None:
        """The artifact, if it is committed and every file has the hash in its manifest."""
        folder = self.get_artifact_folder(stage, key)
        manifest = read_manifest(folder)
        if manifest is None or manifest["key"] != key or not has_valid_files(folder, manifest):
            return None
        return Artifact(folder, manifest)

    def list_artifacts(self, stage: str) -> list[Artifact]:
        """Every committed artifact of a stage, newest first; not verified."""
        artifacts = []
        for folder in (self.runs / stage).glob("[!.]*"):
            if (manifest := read_manifest(folder)) is not None:
                with contextlib.suppress(OSError):  # gc may delete it at this moment
                    artifacts.append(((folder / MANIFEST_FILE).stat().st_mtime_ns, Artifact(folder, manifest)))
        return [artifact for _, artifact in sorted(artifacts, key=lambda pair: pair[0], reverse=True)]

    @contextmanager
    def create_build_folder(self, stage: str, key: str) -> Iterator[Path]:
        """An empty folder to build an artifact in; deleted afterwards if it was not committed."""
        folder = self.runs / stage / f".tmp-{key}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit_artifact(self, stage: str, key: str, build_folder: Path, manifest: Mapping[str, Any]) -> Artifact:
        """Make a built folder the artifact under `key`.

        The files are synced before the manifest is written, and the manifest before the folder is renamed. A damaged
        artifact of the same key is replaced file by file, so that readers always find every file.
        """
        full_manifest = {**manifest, "key": key, "files": digest_folder(build_folder)}
        for path in build_folder.rglob("*"):
            if path.is_file():
                fsync_path(path)
        write_durably(
            build_folder / MANIFEST_FILE,
            json.dumps({**full_manifest, "digest": digest_json(full_manifest)}, indent=1, ensure_ascii=False),
        )
        _apply_umask(build_folder)
        target = self.get_artifact_folder(stage, key)
        if target.exists():
            for path in sorted(
                path for path in build_folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE
            ):
                destination = target / path.relative_to(build_folder)
                destination.parent.mkdir(parents=True, exist_ok=True)
                path.replace(destination)
            (build_folder / MANIFEST_FILE).replace(target / MANIFEST_FILE)
        else:
            build_folder.rename(target)
        fsync_path(target.parent)
        return Artifact(target, full_manifest)

    def log_event(self, **fields: Any) -> None:
        """Append one line with the time to events.jsonl. Nothing happens if the file can't be written."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **fields}, ensure_ascii=False)
        with contextlib.suppress(OSError), (self.root / "events.jsonl").open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                line = "\n" + line  # the previous line is cut off by a kill or a full disk
            file.write((line + "\n").encode())

    def read_events(self) -> list[dict[str, Any]]:
        """The events of events.jsonl in order, without lines that a kill or a full disk cut off."""
        events = []
        with contextlib.suppress(OSError):
            for line in (self.root / "events.jsonl").read_text(encoding="utf-8", errors="replace").split("\n"):
                with contextlib.suppress(ValueError):
                    events.append(json.loads(line))
        return events


def _apply_umask(build_folder: Path) -> None:
    """Give all files and folders the permissions that the umask gives new ones: some libraries write for the owner
    alone (safetensors: 0600), and services under other accounts read what is published."""
    file_mode = (build_folder / MANIFEST_FILE).stat().st_mode
    folder_mode = build_folder.stat().st_mode
    for path in build_folder.rglob("*"):
        path.chmod(folder_mode if path.is_dir() else file_mode)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """A folder's manifest; None if there is none, or if it was damaged."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        digest = manifest.pop("digest")
    except (OSError, ValueError, AttributeError, KeyError):
        return None
    return manifest if digest == digest_json(manifest) else None


def has_valid_files(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether every file that the manifest names still has its digest; other files are ignored."""
    try:
        return all(file_digest(folder / name) == digest for name, digest in manifest["files"].items())
    except OSError:
        return False

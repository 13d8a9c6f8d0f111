"""The cached verdicts of the LLM judge: an append-only file with a JSON line for each pair."""

import json
import os
from collections.abc import Mapping
from pathlib import Path


class VerdictCache:
    """Verdicts in memory (`verdicts`: key -> relevant) and in a file, which `add` creates.

    Damaged lines are ignored and counted (`n_damaged_lines`). If a pair has several lines, the first counts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.verdicts: dict[str, bool] = {}
        self.n_damaged_lines = 0
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        self._ends_with_newline = not text or text.endswith("\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                pair, relevant = entry["pair"], entry["relevant"]
            except (ValueError, KeyError, TypeError):
                self.n_damaged_lines += 1
                continue
            if isinstance(pair, str) and isinstance(relevant, bool):
                self.verdicts.setdefault(pair, relevant)
            else:
                self.n_damaged_lines += 1

    def add(self, verdicts: Mapping[str, bool]) -> None:
        """Add verdicts of new pairs; when this returns, they are on disk."""
        new = {pair: relevant for pair, relevant in verdicts.items() if pair not in self.verdicts}
        if not new:
            return
        lines = "".join(json.dumps({"pair": pair, "relevant": relevant}) + "\n" for pair, relevant in new.items())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(lines if self._ends_with_newline else f"\n{lines}")
            file.flush()
            os.fsync(file.fileno())
        self._ends_with_newline = True
        self.verdicts |= new

"""What a judge has answered and been paid for: a file that only grows, one JSON line a pair."""

import json
import os
from collections.abc import Mapping
from pathlib import Path


class VerdictCache:
    """Answers by pair, in memory and in a file; a file that does not exist yet is an empty ledger.

    `verdicts` is key -> relevant. A line that a kill cut short or damage changed is passed over (`n_damaged_lines`
    counts them), so its pair counts as never asked. Of a pair that stands there twice the first line is kept.
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
        """Keep answers of pairs that are not held; when this returns, they are on disk."""
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

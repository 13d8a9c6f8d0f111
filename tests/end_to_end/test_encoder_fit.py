"""Whether the encoder fits the table, through the commands, with the default encoder."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from tests.conftest import run_prep

CHINESE_ROWS = [
    ("怎样洗羊毛衫？", "用冷水和中性洗涤剂轻轻揉搓，平铺晾干，不要暴晒。"),
    ("冰箱多久除一次霜？", "霜层超过五毫米时断电融化，通常每三个月一次。"),
    ("绿萝叶子发黄怎么办？", "减少浇水，移到散射光处，并剪去枯黄的部分。"),
    ("怎样给手机省电？", "降低屏幕亮度，关闭后台程序和定位服务。"),
    ("猫为什么总是掉毛？", "换季时属于正常现象，每天梳理并补充鱼油可以缓解。"),
    ("面包怎样保存才不会变硬？", "装入密封袋冷冻，食用前重新烘烤几分钟。"),
    ("跑步后膝盖疼是什么原因？", "多与姿势不当或训练量过大有关，应当休息并更换鞋子。"),
    ("怎样去除衣服上的油渍？", "先撒上面粉吸油，再用洗洁精搓洗。"),
    ("汽车轮胎多久换一次？", "一般行驶六万公里或使用五年之后更换。"),
    ("宝宝几个月可以吃辅食？", "满六个月开始，先尝试含铁的米粉。"),
    ("怎样选购新鲜的鱼？", "眼睛清亮、鳃色鲜红、肉质有弹性的为好。"),
    ("护照快到期了怎么换？", "携带旧证件和照片到出入境窗口申请，七个工作日可取。"),
]
ENGLISH_ROWS = [
    ("How do I cook fluffy rice?", "Rinse the rice twice, soak it for twenty minutes and let it rest after cooking."),
    (
        "How often should a bicycle chain be oiled?",
        "Clean and oil the chain every two hundred kilometres or after rain.",
    ),
    (
        "May I exercise with a fever?",
        "Stay in bed while the temperature is high and wait three days after it has gone.",
    ),
    ("How do I keep a laptop from overheating?", "Put it on a hard surface, clean the fan and keep the vents free."),
    ("What should I do if I lose my passport?", "Report it to the police and apply to the embassy for a new one."),
    ("Why are the leaves of my succulent soft?", "Too much water rots the roots: let the soil dry out completely."),
    ("Can I take my pet on the train?", "Small animals travel free of charge in a closed box; dogs need a ticket."),
    (
        "Is there a fee for repaying a mortgage early?",
        "It depends on the contract; many banks charge nothing after a year.",
    ),
    ("How can I tell whether an egg is fresh?", "A fresh egg sinks in cold water, an old one floats."),
    ("Why are my night photos blurred?", "The shutter is slow in the dark: use a tripod or a higher sensitivity."),
    ("When can a puppy be vaccinated?", "The first injection is given at six to eight weeks, then every three weeks."),
    (
        "How should coffee beans be stored?",
        "Keep them in a tight, dark tin in a cool place and use them within a month.",
    ),
]


def mine(folder: Path, rows: list[tuple[str, str]]) -> tuple[str, str, dict[str, Any]]:
    """The text on stdout and stderr, and the manifests' summaries by step."""
    pl.DataFrame(rows, ["question", "document"], orient="row").write_csv(folder / "faq.csv")
    (folder / "prep.toml").write_text(
        '[pairs]\ntables = ["faq.csv"]\n[search]\ntop_k = 10\n[mine]\nnum_negatives = 2\n'
    )
    done = run_prep("mine-negatives", cwd=folder)
    assert done.returncode == 0, done.stderr
    manifests = [json.loads(path.read_text()) for path in (folder / "work/runs").glob("*/*/manifest.json")]
    return done.stdout, done.stderr, {one["stage"]: one["summary"] for one in manifests}


def test_chinese_texts_and_an_english_encoder(tmp_path: Path) -> None:
    out, err, summaries = mine(tmp_path, CHINESE_ROWS)
    line = "the encoder sentence-transformers/all-MiniLM-L6-v2 does not fit these texts (mostly Han): its tokenizer"
    assert line in out
    assert err.index(line) < err.index("24 texts to encode with")
    assert err.count(line) == 1
    assert "BAAI/bge-small-zh-v1.5 (Chinese, 24 M parameters, MIT)" in err
    assert "docs/training.md#models" in err
    for step in ("encode", "search"):
        fit = summaries[step]["encoder_fit"]
        assert (fit["verdict"], fit["queries"]["script"], fit["documents"]["script"]) == ("misfit", "Han", "Han")
        assert fit["documents"]["unknown_share"] > 0.2
    assert summaries["search"]["encoder_fit"]["ranking"]["n_documents"] == 12
    assert summaries["mask"]["rule"] == "perc"
    reason = summaries["features"]["estimate"]["unreliable_reason"]
    assert reason.startswith("the encoder does not fit it: its tokenizer does not know ")
    assert f"so perc is used: {reason}" in err

    done = run_prep("status", cwd=tmp_path)
    assert line in done.stdout
    found = json.loads(run_prep("status", "--json", cwd=tmp_path).stdout)
    assert found["encoder_fit"] == summaries["search"]["encoder_fit"]


def test_english_texts_and_an_english_encoder(tmp_path: Path) -> None:
    out, err, summaries = mine(tmp_path, ENGLISH_ROWS)
    assert "the encoder" not in out + err
    assert "longer than" not in out + err
    assert summaries["search"]["encoder_fit"]["verdict"] == "ok"
    assert "the encoder" not in run_prep("status", cwd=tmp_path).stdout
    assert json.loads(run_prep("status", "--json", cwd=tmp_path).stdout)["encoder_fit"]["reasons"] == []


def test_documents_that_are_cut_and_answers_behind_the_cut(tmp_path: Path) -> None:
    words = " ".join(f"the fox number {i} sees a dog" for i in range(100))
    rows = [
        (f"What does chapter {i} say?", f"Chapter {i}. {words} The secret is {i} apples.", f"{i} apples")
        for i in range(11, 23)
    ]
    pl.DataFrame(rows, ["question", "document", "answer"], orient="row").write_csv(tmp_path / "faq.csv")
    (tmp_path / "prep.toml").write_text('[pairs]\ntables = ["faq.csv"]\n')
    done = run_prep("encode", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = (
        "12 of 12 documents are longer than the encoder reads (256 tokens): the rest is cut off, and 100% of 12 known "
        "answers stand there. chunk_words under [pairs] splits documents"
    )
    assert line in done.stderr
    assert line in done.stdout
    assert "100% of the known answers stand behind what it reads of their documents" in done.stdout

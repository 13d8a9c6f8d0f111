"""The machine that is planned for, where it isn't at hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertModel, BertTokenizerFast

from stages.planning.hardware import on_gpus, shape_of
from stages.planning.machine import Machine
from stages.planning.throughput import GPUS
from stages.planning.workload import Table


def test_a_teacher_on_a_gpu_takes_what_it_computes_itself(
    table: Table, settings: dict[str, Any], machine: Machine, tiny_model: Path, tmp_path: Path
) -> None:
    BertTokenizerFast.from_pretrained(tiny_model).save_pretrained(tmp_path)
    BertModel(BertConfig.from_pretrained(tiny_model, num_hidden_layers=4, hidden_size=64)).save_pretrained(tmp_path)
    verify = settings["verify"].model_copy(update={"verifier": str(tmp_path)})
    made = {
        **settings,
        "train": settings["train"].model_copy(update={"base": str(tiny_model)}),
        "verify": verify,
    }
    alone = replace(table, encodings=[], pairs=[])  # no text: nothing is limited by the tokeniser
    machine = replace(machine, encoders=[])
    teacher = on_gpus(GPUS["h100"], 1, alone, made, machine).teacher
    assert teacher and teacher.shape == shape_of(tmp_path)
    assert teacher.shape.layers == 4
    expected = teacher.shape.flops(1) / (GPUS["h100"].bf16 * 0.3)
    assert next(iter(teacher.rates.values())).seconds[0] == pytest.approx(expected)
    made["verify"] = verify.model_copy(update={"verifier": "self"})
    assert on_gpus(GPUS["h100"], 1, alone, made, machine).teacher is None

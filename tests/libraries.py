"""The libraries that `prep` imports while it runs, imported once for all of its processes in the tests."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # read when they are imported

# ruff: noqa: F401
import click
import faiss
import hypothesis
import ir_measures
import polars
import pyarrow.parquet
import pytest
import rich.progress
import sentence_transformers
import sklearn.isotonic
import sklearn.linear_model
import torch.utils.tensorboard
import transformers.models.bert.modeling_bert
from sentence_transformers.cross_encoder import CrossEncoderTrainer

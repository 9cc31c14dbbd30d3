"""Trainings with real frameworks on a CPU, tuned and then trained, as their users would."""

import sys
import textwrap
from pathlib import Path

import yaml

from autotune.best_config import read_best_config

from ..commands import autotune_run

# What every script trains: a sample takes its time to load, and a step takes its time whatever the
# batch, so that larger batches are faster and workers are, too.
COMMON = """
import os, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(1)
LENGTH = int(os.environ.get("LENGTH", 96))

class Texts(Dataset):
    def __len__(self):
        return LENGTH
    def __getitem__(self, index):
        time.sleep(0.001)
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(0, 50, (12,), generator=generator)
        mask = torch.ones(12, dtype=torch.long)
        mask[8 + index % 4:] = 0
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(index % 2)}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 2)
    def forward(self, input_ids, attention_mask=None, labels=None):
        time.sleep(0.005)
        logits = self.head(self.embedding(input_ids).mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}
"""


def write_script(text):
    """Write a training script into the working directory; gives its path."""
    path = Path("train.py")
    path.write_text(COMMON + textwrap.dedent(text))
    return path


def run_tuning(**changes):
    """Tune the script; gives the finished command."""
    definition = {
        "name": "frameworks",
        "command": [sys.executable, "train.py"],
        "axes": {"batch_size": [4, 16], "num_workers": [0], "num_threads": [1], "gc": ["default"]},
        "sampler": "grid",
        "block_s": 0.1,
        "max_blocks": 2,
        "confirm_s": 0.3,
        "confirm_rounds": 1,
        "num_candidates": 1,
        "budget": "100s",
        "allow_busy": True,
        **changes,
    }
    Path("study.yaml").write_text(yaml.safe_dump(definition))
    return autotune_run("--study", "study.yaml")


def chosen():
    """The settings that were written."""
    return read_best_config(Path("best_config.yaml")).config

"""`fsseg train`: all that `python train.py` does, where there is no train.py. `fsseg.cli.app` calls `start`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from fsseg.config.compose import config_folder
from fsseg.config.entry import launch
from fsseg.run import run


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")
def main(cfg: DictConfig) -> float | None:
    return run(cfg).score


def start(line: Sequence[str]) -> None:
    """Run a line: the overrides and flags that may follow `python train.py`."""
    sys.argv = ["fsseg train", *line]
    launch(main)

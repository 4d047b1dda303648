"""Train and evaluate one cell of the experiment grid, or with -m a sweep of cells; see README.md."""

import hydra
from omegaconf import DictConfig

from fsseg.config.entry import launch
from fsseg.run import run


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    return run(cfg).score


if __name__ == "__main__":
    launch(main)

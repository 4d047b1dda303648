"""Where Hydra finds fsseg's launchers, with the schemas of their settings; the code is in `fsseg.sweep.launchers`."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

from fsseg.sweep.launchers.local import LocalLauncher as _Local
from fsseg.sweep.launchers.slurm import SlurmLauncher as _Slurm


class LocalLauncher(_Local):
    """Hydra only instantiates launchers whose class lives below `hydra_plugins`."""


class SlurmLauncher(_Slurm):
    """As `LocalLauncher`."""


@dataclass
class LocalConf:
    _target_: str = "hydra_plugins.fsseg_launchers.LocalLauncher"
    submitit_folder: str = "${hydra.sweep.dir}/.submitit/${now:%Y%m%dT%H%M%S}"
    """Pickles and logs of the workers."""
    workers: int | None = None
    """Cells at a time; null: one for each GPU, without a GPU one for every 4 cores."""
    gpus_per_node: int | None = None
    """GPUs of a cell, by CUDA_VISIBLE_DEVICES; null: one a task where there are any; 0 hides them."""
    tasks_per_node: int = 1
    """Processes of a cell; more than 1 train it with DDP."""
    signal_delay_s: int = 120
    """Seconds a cell has for its checkpoint after INT or TERM, before it is killed."""
    max_restarts: int = 10
    """How often a cell that saved itself on USR2 is started again."""


@dataclass
class SlurmConf(SlurmQueueConf):
    """Everything of hydra-submitit-launcher's `submitit_slurm`."""

    _target_: str = "hydra_plugins.fsseg_launchers.SlurmLauncher"
    poll_seconds: float = 10.0
    """Seconds between two calls of squeue while the sweep waits."""


for _name, _node in (("local", LocalConf), ("slurm", SlurmConf)):
    ConfigStore.instance().store(group="hydra/launcher", name=f"fsseg_{_name}", node=_node, provider="fsseg")

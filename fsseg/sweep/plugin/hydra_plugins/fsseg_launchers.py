"""Where Hydra finds fsseg's launchers, with the schemas of their settings; the code is in `fsseg.sweep.launchers`."""

from dataclasses import dataclass
from typing import Annotated

from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

from fsseg.config.constraints import FILE_PATH, within
from fsseg.config.hydra_internals import look_before_launching
from fsseg.sweep.launchers.habit import ready
from fsseg.sweep.launchers.local import LocalLauncher as _Local
from fsseg.sweep.launchers.slurm import SlurmLauncher as _Slurm


class LocalLauncher(_Local):
    """Hydra only instantiates launchers whose class lives below `hydra_plugins`."""


class SlurmLauncher(_Slurm):
    """As `LocalLauncher`."""


@dataclass
class LocalConf:
    _target_: str = "hydra_plugins.fsseg_launchers.LocalLauncher"
    submitit_folder: Annotated[str, FILE_PATH] = "${hydra.sweep.dir}/.submitit/${now:%Y%m%dT%H%M%S}"
    """Pickles and logs of the workers."""
    workers: Annotated[int | None, within(1, 1024)] = None
    """Cells at a time; null: one for each GPU, without a GPU one for every 4 cores."""
    gpus_per_node: Annotated[int | None, within(0, 64)] = None
    """GPUs of a cell, by CUDA_VISIBLE_DEVICES; null: one a task where there are any; 0 hides them."""
    tasks_per_node: Annotated[int, within(1, 64)] = 1
    """Processes of a cell; more than 1 train it with DDP."""
    signal_delay_s: Annotated[int, within(0, 86_400)] = 120
    """Seconds a cell has for its checkpoint after INT or TERM, before it is killed."""
    max_restarts: Annotated[int, within(0, 10_000)] = 10
    """How often a cell that saved itself on USR2 is started again."""


@dataclass
class SlurmConf(SlurmQueueConf):
    """Everything of hydra-submitit-launcher's `submitit_slurm`; its numbers stand here again with their ranges."""

    _target_: str = "hydra_plugins.fsseg_launchers.SlurmLauncher"
    poll_seconds: Annotated[float, within(0.1, 3600)] = 10.0
    """Seconds between two calls of squeue while the sweep waits."""
    wait: bool = True
    """Whether the launching process waits for the jobs; false submits them and leaves."""
    submitit_folder: Annotated[str, FILE_PATH] = "${hydra.sweep.dir}/.submitit/%j"
    timeout_min: Annotated[int, within(1, 1_000_000)] = 60
    cpus_per_task: Annotated[int | None, within(1, 4096)] = None
    gpus_per_node: Annotated[int | None, within(0, 64)] = None
    tasks_per_node: Annotated[int, within(1, 64)] = 1
    mem_gb: Annotated[int | None, within(1, 100_000)] = None
    nodes: Annotated[int, within(1, 1024)] = 1
    cpus_per_gpu: Annotated[int | None, within(1, 4096)] = None
    gpus_per_task: Annotated[int | None, within(0, 64)] = None
    signal_delay_s: Annotated[int, within(0, 86_400)] = 120
    max_num_timeout: Annotated[int, within(0, 10_000)] = 0
    array_parallelism: Annotated[int, within(1, 100_000)] = 256


for _name, _node in (("local", LocalConf), ("slurm", SlurmConf)):
    ConfigStore.instance().store(group="hydra/launcher", name=f"fsseg_{_name}", node=_node, provider="fsseg")

look_before_launching(ready)

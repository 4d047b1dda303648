"""Where Hydra looks for plugins (a namespace package: no __init__.py). The sweeper itself: `fsseg.sweep.sweeper`."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from fsseg.sweep.sweeper import FssegSweeper as _Base


class FssegSweeper(_Base):
    """Hydra only instantiates sweepers whose class lives below `hydra_plugins`."""


@dataclass
class SweeperConf:
    _target_: str = "hydra_plugins.fsseg_sweeper.FssegSweeper"
    params: dict[str, Any] | None = field(default_factory=dict)
    """Overrides of the grid, as on the command line: `fold: 0,1,2,3`."""


ConfigStore.instance().store(group="hydra/sweeper", name="fsseg", node=SweeperConf, provider="fsseg")

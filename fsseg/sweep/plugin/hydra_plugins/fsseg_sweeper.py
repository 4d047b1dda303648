"""Where Hydra looks for plugins (a namespace package: no __init__.py here). The sweeper itself is `fsseg.sweep.sweeper`."""

from hydra.core.config_store import ConfigStore

from fsseg.sweep.sweeper import FssegSweeper as _Base


class FssegSweeper(_Base):
    """Hydra only instantiates sweepers whose class lives below `hydra_plugins`."""


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="fsseg",
    node={"_target_": "hydra_plugins.fsseg_sweeper.FssegSweeper"},
    provider="fsseg",
)

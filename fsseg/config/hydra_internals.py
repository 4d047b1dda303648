"""The only place that touches `hydra._internal`: what Hydra 1.3 does not offer in public.

For Hydra 1.4: look at every name here first. `tests/config/test_hydra_internals.py` says what each must be able to do.
"""

from __future__ import annotations

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

__all__ = ["BasicLauncher", "BasicSweeper", "ConfigLoaderImpl"]

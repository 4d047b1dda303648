"""The only place that touches `hydra._internal` and OmegaConf's private methods: what they do not offer in public.

For Hydra 1.4 or OmegaConf 2.4, look at every name here first. `tests/config/test_hydra_internals.py` says what each
must do, and fails with any Hydra but 1.3.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hydra._internal.hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import get_args_parser as flags_parser
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.grammar_parser import parse

__all__ = [
    "BasicLauncher", "also_search", "apply_overrides", "flags_parser", "group_repository", "hydra_node",
    "interpolation", "look_before_launching", "look_before_reading", "look_before_running", "run_without_files",
    "split_line",
]  # fmt: skip


def split_line(loader: ConfigLoader, arguments: Sequence[str]) -> list[tuple[str, ...]]:
    """The jobs of a `-m` line, each as its own overrides, in the order of Hydra's own sweeper.

    Hydra writes every value anew, `${a}` without quotes as `$\\{a\\}`; it means the same, but nobody knows it again.
    """
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
    jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    return [tuple(_INTERPOLATION.sub(_as_it_was, override) for override in job) for job in jobs]


_INTERPOLATION = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\$\\\{((?:[^\\]|\\[^}])*)\\\}""", re.DOTALL)
"""A text in quotes, or an interpolation that Hydra wrote with escapes."""


def _as_it_was(match: re.Match[str]) -> str:
    inner = match[1]
    return match[0] if inner is None else "${" + re.sub(r"\\(.)", r"\1", inner) + "}"


def also_search(loader: ConfigLoader, folder: str) -> None:
    """Let a loader find files in another folder too, as `--config-dir` does."""
    assert isinstance(loader, ConfigLoaderImpl)
    loader.config_search_path.prepend("command-line", f"file://{os.path.abspath(folder)}", anchor="schema")
    loader.repository = ConfigRepository(loader.config_search_path)


def apply_overrides(overrides: Sequence[Override], cfg: DictConfig) -> None:
    """Put plain overrides into a composed configuration, in place, as Hydra does with those that choose no group."""
    ConfigLoaderImpl._apply_overrides_to_config(list(overrides), cfg)


def group_repository(loader: ConfigLoader, master: DictConfig) -> Any:
    """The repository whose `group_exists(name)` says which keys choose a file; `hydra.searchpath` may add some.

    None for a loader that is not Hydra's own.
    """
    if not isinstance(loader, ConfigLoaderImpl):
        return None
    hydra_overrides: Any = OmegaConf.to_container(master.hydra.overrides.hydra)
    return loader._parse_overrides_and_create_caching_repo(master.hydra.job.config_name, hydra_overrides)[1]


def interpolation(node: DictConfig, key: str) -> Callable[[], Any]:
    """What gives the value of an interpolated key, as often as asked: its text is parsed only once.

    OmegaConf parses it at every access, which takes ten times as long as resolving it.
    """
    value: Any = node._get_node(key)
    tree = parse(value._value())

    def resolve() -> Any:
        found: Any = node._resolve_interpolation_from_parse_tree(
            parent=node, value=value, key=key, parse_tree=tree, throw_on_resolution_failure=True, memo=set()
        )
        return found if OmegaConf.is_config(found) else found._value()

    return resolve


def look_before_reading(check: Callable[[str], None]) -> None:
    """Let Hydra read a YAML file only after `check` was called with its path, in this process from now on."""
    Plugins.instance()  # which loads the classes of sources anew
    source: Any = SourcesRegistry.instance().resolve("file")
    load = source.load_config
    if getattr(load, "checked", False):
        return

    def load_config(self: ConfigSource, config_path: str) -> ConfigResult:
        path = os.path.join(self.path, self._normalize_file_name(config_path))
        if os.path.exists(path):
            check(path)
        return load(self, config_path)

    load_config.checked = True  # type: ignore[attr-defined]
    source.load_config = load_config


def look_before_launching(look: Callable[[DictConfig], None]) -> None:
    """Let any sweeper make its launcher only after `look` was called with the configuration, which it may change."""
    make: Any = Plugins.instantiate_launcher
    if getattr(make, "looked", False):
        return

    def instantiate_launcher(
        self: Plugins, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> Any:
        look(config)
        return make(self, hydra_context, task_function, config)

    instantiate_launcher.looked = True  # type: ignore[attr-defined]
    Plugins.instantiate_launcher = instantiate_launcher  # type: ignore[method-assign]


def hydra_node(master: DictConfig) -> dict[str, Any]:
    """Hydra's own node of a sweep, for `run_without_files`; what it says of the time is that of now."""
    node: Any = OmegaConf.to_container(master.hydra, resolve=False, enum_to_str=True)
    node["sweep"]["dir"] = str(master.hydra.sweep.dir)
    return {key: value for key, value in node.items() if key not in ("help", "hydra_help")}  # long, and for no job


def run_without_files(
    task: TaskFunction,
    config: DictConfig,
    node: Mapping[str, Any],
    overrides: Sequence[str],
    job: Mapping[str, Any],
    context: HydraContext | None = None,
) -> JobReturn:
    """Call a task as Hydra's launchers do, with a configuration that is made already: no YAML file is read again.

    Args:
        config: of the job, without a `hydra` node.
        node: what `hydra_node` gave.
        overrides: of the job.
        job: its `id` and `num`, as Hydra names them.
        context: of the sweep, in whose process the job runs; None makes the callbacks anew.
    """
    setup_globals()
    schema = OmegaConf.structured(HydraConf)
    OmegaConf.set_struct(schema, False)  # groups below hydra/ bring keys of their own
    own: Any = OmegaConf.merge(schema, OmegaConf.create(dict(node)))
    own.overrides.task = list(overrides)
    own.job.id, own.job.num = job["id"], job["num"]
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    naming = own.job.config.override_dirname
    own.job.override_dirname = get_overrides_dirname(parsed, list(naming.exclude_keys), naming.item_sep, naming.kv_sep)
    for override in parsed:
        if override.key_or_group in own.runtime.choices:
            own.runtime.choices[override.key_or_group] = override.value()
    with open_dict(config):
        config.hydra = own
    if context is None:
        context = HydraContext(config_loader=None, callbacks=Callbacks(config))  # type: ignore[arg-type]  # nothing loads
    return run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)


def look_before_running(check: Callable[[DictConfig], None]) -> None:
    """Let Hydra start a single run only after `check` was called with its configuration: before it makes a folder.

    Jobs of a sweep are not looked at; the sweeper has its own look.
    """
    module: Any = hydra._internal.hydra
    start = module.run_job
    if getattr(start, "checked", False):
        return

    def run_job(*, config: DictConfig, **arguments: Any) -> Any:
        check(config)
        return start(config=config, **arguments)

    run_job.checked = True  # type: ignore[attr-defined]
    module.run_job = run_job

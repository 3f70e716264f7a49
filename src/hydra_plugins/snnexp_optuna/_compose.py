"""Compose the configs of a sweep's jobs: the files once for each choice of groups, each job's values in a copy."""

import copy
import os
from functools import lru_cache
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict

ENVIRONMENT = "hydra.job.env_set."  # the place of a job in its sweep, which is different for each job
# What this process has composed: unlike attributes, it is there for each job that is sent to a worker, and in forks.
_bases: dict[tuple[str | None, ...], DictConfig] = {}
_files: dict[tuple[str | None, ...], CachingConfigRepository] = {}


class Composer(ConfigLoaderImpl):
    """Hydra's loader, which reads and merges the files once for each choice of groups.

    Hydra merges the files first and then sets the values of the command line, in their order. Here Hydra's own function
    sets them in a copy of what was merged, so the result is the same.
    """

    def _load_configuration_impl(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        if run_mode != RunMode.RUN:
            return super()._load_configuration_impl(
                config_name, overrides, run_mode, from_shell, validate_sweep_overrides
            )
        parsed = [_parsed(text) for text in overrides]
        if validate_sweep_overrides:
            self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
        files = self._repository(config_name, [o for o in parsed if _of_hydra(o)])
        values = [o for o in parsed if _sets_a_value(o, files)]
        config = self._base(config_name, [str(o.input_line) for o in parsed if o not in values])
        self._apply_overrides_to_config(values, config)
        _record(parsed, config)
        return config

    def header(self, config: DictConfig, file: str) -> dict[str, str]:
        """Return the header of a file on the search path of `config`, its first lines of the form `# @KEY VALUE`."""
        settings = [o for o in map(_parsed, config.hydra.overrides.hydra) if _of_hydra(o)]
        found = self._repository(config.hydra.job.config_name, settings).load_config(file)
        return dict(found.header) if found else {}  # type: ignore[arg-type]

    def _repository(self, config_name: str | None, settings: list[Override]) -> CachingConfigRepository:
        """Return the files on Hydra's search path, to which the settings of Hydra may add folders."""
        paths = [str(o.input_line) for o in settings if o.get_key_element() == "hydra.searchpath"]
        key = (str(Path.cwd()), str(self.config_search_path), config_name, *paths)
        if key not in _files:
            _files[key] = self._parse_overrides_and_create_caching_repo(config_name, paths)[1]
        return _files[key]

    def _base(self, config_name: str | None, chosen: list[str]) -> DictConfig:
        """Return a new copy of the config without the values of the job."""
        key = (str(Path.cwd()), str(self.config_search_path), config_name, *chosen)
        if key not in _bases:
            _bases[key] = super()._load_configuration_impl(config_name, chosen, RunMode.RUN)
        return copy.deepcopy(_bases[key])


def composing_once(context: HydraContext) -> HydraContext:
    """Return a Hydra context whose loader composes the files of a sweep once."""
    return HydraContext(config_loader=Composer(context.config_loader.get_search_path()), callbacks=context.callbacks)


@lru_cache(maxsize=1024)  # the jobs of a sweep have most overrides in common
def _parsed(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


def _of_hydra(override: Override) -> bool:
    return override.key_or_group == "hydra" or override.is_hydra_override()


def _sets_a_value(override: Override, files: CachingConfigRepository) -> bool:
    """Return whether the override is neither a choice of a group nor a setting of Hydra."""
    if _of_hydra(override):
        return override.key_or_group.startswith(ENVIRONMENT)
    return isinstance(override.value(), dict) or not files.group_exists(override.key_or_group)


def _record(overrides: list[Override], config: DictConfig) -> None:
    """Record overrides and environment in Hydra's part of the config, as Hydra does."""
    job, own = config.hydra.job, [o for o in overrides if not o.is_hydra_override()]
    config.hydra.overrides.hydra = [o.input_line for o in overrides if o.is_hydra_override()]
    config.hydra.overrides.task = [o.input_line for o in own]
    with open_dict(job.env_set):
        for name in job.env_copy:
            job.env_set.pop(name, None)
            job.env_set[name] = os.environ[name]
    form = job.config.override_dirname
    job.override_dirname = get_overrides_dirname(
        overrides=own, kv_sep=form.kv_sep, item_sep=form.item_sep, exclude_keys=form.exclude_keys
    )

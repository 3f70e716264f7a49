"""Grids whose values stand in hydra.sweeper.space, as in the YAML of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.snnexp_optuna._compose import Composer
from hydra_plugins.snnexp_optuna._study import search_space
from snnexp.errors import UserError


def jobs(
    space: Mapping[str, Any], config: DictConfig, loader: ConfigLoader, arguments: Sequence[str]
) -> tuple[list[list[str]], dict[str, str]]:
    """Return the overrides of each job, and {key that varies: its values as text}.

    Raises UserError for an invalid space, or an interval in it.
    """
    plain: Any = OmegaConf.to_container(space, resolve=True) if OmegaConf.is_config(space) else space
    searched, fixed = search_space(plain, config, Composer(loader.get_search_path()), arguments)
    try:
        listed = searched.grid()
    except UserError as error:
        raise UserError(
            "a range needs a study that samples it: give the number of trials with hydra.sweeper.n_trials=N"
        ) from error
    varied: dict[str, str] = {}
    for d in searched.dimensions:
        for key in d.keys:
            varied[key] = "; ".join(filter(None, [varied.get(key), f"{d.name}: {listed[d.name]}"]))
    return [[*fixed, *searched.overrides(params)] for params in searched.points()], varied

"""Answer mistakes on the command line in the user's words: which word is wrong, what was meant, what is allowed."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from snnexp.config import conf_dir, flatten, quoted, without_hydra
from snnexp.errors import UserError

FULL = "HYDRA_FULL_ERROR"  # with this variable Hydra raises errors, and otherwise prints them in its own words
NAMES = {"T": "timesteps", "K": "timesteps", "learning_rate": "optimizer.lr", "weights": "checkpoint"}
NAMES |= dict.fromkeys(("device", "gpu", "gpus", "cuda", "cpu"), "trainer.accelerator")
NAMES |= dict.fromkeys(("path", "data", "dir", "folder"), "dataset.root")
CUTOFF = 0.7  # of the similarity of two words, from 0 to 1, above which one is taken for a misspelling of the other


@contextmanager
def reported(arguments: Sequence[str]) -> Iterator[None]:
    """Print an error in the block, in the user's words or with its traceback, and raise SystemExit.

    `arguments`: those of the command line. With HYDRA_FULL_ERROR=1 in the environment errors pass as they are.
    """
    if os.environ.get(FULL) == "1":
        yield
        return
    before = os.environ.get(FULL)
    os.environ[FULL] = "1"
    try:
        check_options(arguments)
        yield
    except (HydraException, InterpolationKeyError) as error:
        if not any(word.startswith("query=") for word in arguments):  # a shell asks how a word may go on
            print(advice(error, arguments), file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        traceback.print_exception(error.with_traceback(_own(error)))
        sys.exit(1)
    finally:
        os.environ.pop(FULL) if before is None else os.environ.update({FULL: before})


def check_options(arguments: Sequence[str]) -> None:
    """Raise UserError for a word that begins with a dash and is no option of the command, such as --seed=3."""
    with suppress(SystemExit):  # of --help
        _, unknown = get_args_parser().parse_known_args(list(arguments))
        for word in unknown:
            key, _, value = word.lstrip("-").partition("=")
            following = list(arguments)[list(arguments).index(word) + 1 :][:1]
            value = value or (following[0] if following and "=" not in following[0] else "VALUE")
            raise UserError(
                f"{word} is not an option: keys have no dashes, and an equals sign.{_meant(key, value, _composed([]))}"
            )


def advice(error: HydraException | InterpolationKeyError, arguments: Sequence[str]) -> str:
    """Return the message for an error of Hydra: of a word that cannot be read, or that names what does not exist."""
    said = str(error)
    if isinstance(error, InterpolationKeyError):
        return f"a value refers to another key with ${{...}}: {said.splitlines()[0]}"
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, list(arguments))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_option(error.missing_cfg_file, list(error.options or []), arguments)
    if isinstance(error, ConfigCompositionException):
        if (found := re.match(r"(?:In '.*': )?Could not override '([^']+)'", said)) and "Did you mean" not in said:
            return _no_key(found[1], arguments)
        if found := re.match(r"Ambiguous value for argument '(.+)'\n", said):
            key, _, value = found[1].partition("=")
            return (
                f"{key}={value} are several values: a run for each needs -m: snnexp -m {shlex.quote(found[1])}; "
                f"a list has brackets and quotes: '{key}=[{value}]'"
            )
        if found := re.match(r"Could not append to config. An item is already at '([^']+)'", said):
            return f"{found[1]} exists already: leave out the + before it"
    cause = error.__cause__
    return f"{said}\n{cause}" if isinstance(cause, OmegaConfBaseException) else said


def near(word: str, known: Iterable[str]) -> list[str]:
    """Return those of `known` that `word` may be a misspelling of, the likeliest first."""
    lower = {name.lower(): name for name in known}
    return [lower[name] for name in difflib.get_close_matches(word.lower(), lower, cutoff=CUTOFF)]


def did_you_mean(names: Sequence[str]) -> str:
    """Return the question that names at most three possibilities, after a space; "" if there are none."""
    return f" Did you mean {' or '.join(names[:3])}?" if names else ""


def _own(error: Exception) -> Any:
    """Return the traceback of an error from the first frame of a task on, without Hydra's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_name != "run_job":
        trace = trace.tb_next
    return trace.tb_next if trace is not None else error.__traceback__


def _unreadable(word: str, arguments: list[str]) -> str:
    """Return the message for a word that is not KEY=VALUE."""
    at = arguments.index(word) if word in arguments else len(arguments)
    before, after = arguments[max(at - 1, 0) : at], arguments[at + 1 :]
    starts = at - 1 if word.startswith("=") or (before and before[0].endswith("=")) else at
    joined = re.match(r"[^=]+ ?=?=? ?\S*", " ".join(arguments[starts : starts + 3]))
    if joined and (starts < at or (after and after[0].startswith("="))):
        return f"no spaces around the equals sign: {_shell(joined[0].replace(' ', ''))}"
    key, equals, value = word.partition("=")
    if equals and value.startswith(("[", "{")) and value[-1] not in "]}":
        end = next((k for k, w in enumerate(after) if w.endswith(("]", "}"))), len(after) - 1)
        return f"{word} is cut off at a space: quote the list: '{''.join([word, *after[: end + 1]])}'"
    if equals and value.endswith(","):
        return f"{word} ends with a comma: no space after the comma: {_shell(word + ''.join(after[:1]))}"
    if equals and value.startswith("="):
        return f"{word} has two equals signs: {_shell(key + '=' + value.lstrip('='))}"
    if equals:
        plain = value.strip("'\"")
        return f"{word} cannot be read: quote the value for snnexp and the shell: {_shell(f'{key}={quoted(plain)}')}"
    return _no_value(word, before)


def _no_value(word: str, before: list[str]) -> str:
    """Return the message for a word without an equals sign."""
    groups, keys = _options(), _composed([])
    if word == "snnexp":
        return "snnexp stands twice: leave out the second"
    if word in ("help", "info"):
        return f"{word} is not KEY=VALUE: for help: snnexp --help"
    if found := [f"{group}={word}" for group, options in groups.items() if word in options]:
        return f"{word} is not KEY=VALUE.{did_you_mean([_with_plus(f) for f in found])}"
    key, colon, value = word.partition(":")
    if colon and (key in groups or key in keys):
        return f"{word} has a colon in place of the equals sign: {_shell(f'{key}={value}')}"
    if word in keys or word in groups:
        return f"{word} has no value: {word}=VALUE"
    if before and "=" in before[0]:
        key, _, value = before[0].partition("=")
        return f"{word} is not KEY=VALUE: quote a value with spaces: {_shell(f'{key}={value} {word}')}"
    meant = [f"{_with_plus(group)}={o}" for group, options in groups.items() for o in near(word, options)]
    return f"{word} is not KEY=VALUE, such as task=train.{did_you_mean(meant)}"


def _no_option(missing: str, options: list[str], arguments: Sequence[str]) -> str:
    """Return the message for an option that a group does not have."""
    group, _, option = missing.rpartition("/")
    if not group:
        return f"there is no configuration file {missing}"
    plus = _with_plus(group)
    elsewhere = [f"{_with_plus(g)}={option}" for g, known in _options().items() if option in known and g != group]
    meant = [f"{plus}={name}" for name in near(option, options)] or elsewhere
    meant = meant or [f"{plus}={name}" for name in options if name.startswith(option) or option.startswith(name)]
    return f"{plus}={option} is not allowed.{did_you_mean(meant)} It must be one of {', '.join(options)}"


def _no_key(key: str, arguments: Sequence[str]) -> str:
    """Return the message for a key that the composed config does not have."""
    value = next((w.partition("=")[2] for w in arguments if w.partition("=")[0] == key), "VALUE")
    groups = _options()
    own = get_args_parser().parse_known_args(list(arguments))[0].config_dir
    search = [f"hydra.searchpath=[{quoted(f'file://{Path(own).absolute()}')}]"] if own else []
    chosen = [w for w in arguments if w.lstrip("+").partition("=")[0] in groups]
    keys = _composed([*search, *chosen], hydra=key.startswith("hydra."))
    group, _, leaf = key.rpartition(".")
    inside = [k.removeprefix(f"{group}.") for k in keys if k.startswith(f"{group}.") and not k.endswith("_target_")]
    lists = f" The keys of {group}: {', '.join(inside)}" if inside else " All keys: snnexp --help"
    if holders := [option for option in groups.get(group, []) if leaf in _keys_of(group, option)]:
        lists = f" Of the options of {group} only these have it: {', '.join(holders)} (choose one with {group}=OPTION)"
        return f"{key} is not a key of this {group}.{lists}"
    return f"{key} is not a key.{_meant(key, value, keys)}{lists}"


def _meant(key: str, value: str, keys: Sequence[str]) -> str:
    """Return the question which known key was meant, with the value that was given to it."""
    group, _, leaf = key.rpartition(".")
    leaves: dict[str, list[str]] = {}
    for known in keys:
        leaves.setdefault(known.rpartition(".")[2], []).append(known)
    siblings = {k.rpartition(".")[2]: k for k in keys if group and k.rpartition(".")[0] == group}
    tops = {k.partition(".")[0] for k in keys} | _options().keys()
    tried: tuple[Callable[[], list[str]], ...] = (  # the likeliest first
        lambda: [key] if key in keys or key in tops else [],
        lambda: [NAMES[leaf]] if leaf in NAMES else [],
        lambda: [siblings[name] for name in near(leaf, siblings)],
        lambda: [k for k in leaves.get(leaf, []) if k.count(".") == min(k.count(".") for k in leaves[leaf])],
        lambda: near(key, keys if group else tops) if group not in tops else [],
        lambda: [k for name in near(leaf, leaves) for k in leaves[name]] if group not in tops else [],
    )
    found = next((names for each in tried if (names := each())), [])
    return did_you_mean([f"{_with_plus(name)}={value}" for name in found])


def _composed(choices: list[str], *, hydra: bool = False) -> list[str]:
    """Return all keys of the config with these choices of options; of the default config if they are wrong.

    `hydra`: those of Hydra's part instead.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        try:
            config = compose("config", choices, return_hydra_config=hydra)
        except HydraException:
            config = compose("config", return_hydra_config=hydra)
        if hydra:
            return list(flatten({"hydra": OmegaConf.to_container(config.hydra, resolve=False)}))
        return list(flatten(without_hydra(config, resolve=False)))


def _options() -> dict[str, list[str]]:
    """Return the options of each group of snnexp's own, `task` first."""
    folders = sorted((p for p in Path(conf_dir()).iterdir() if p.is_dir()), key=lambda p: (p.name != "task", p.name))
    found = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}
    return {group: options for group, options in found.items() if options and group != "hydra"}


def _keys_of(group: str, option: str) -> Mapping[str, Any]:
    with suppress(OSError, yaml.YAMLError):
        return dict(yaml.safe_load((Path(conf_dir()) / group / f"{option}.yaml").read_text()) or {})
    return {}


def _with_plus(name: str) -> str:
    """Return how a group is chosen on the command line: prepared sweeps are no part of the default config."""
    return f"+{name}" if name.partition("=")[0] == "sweep" else name


def _shell(word: str) -> str:
    """Return the command with one word, quoted for a shell where that is needed."""
    plain = "'" in word and not re.search(r'["$`\\!]', word)
    return f'snnexp "{word}"' if plain else f"snnexp {shlex.quote(word)}"

"""What `--cfg` and `--info` show of a sweep. Hydra refuses them together with `-m`."""

from collections.abc import Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException


def of_first_job(arguments: Sequence[str]) -> list[str]:
    """Return the command line that shows the first job of the sweep; one that shows no sweep is returned as it is.

    A choice or a range becomes its first value; what has no value before the sweep (an interval, a glob) is left out.
    What varies is printed as a comment, so the output is still YAML.
    """
    single = [a for a in arguments if a not in ("-m", "--multirun")]
    if len(single) == len(arguments):
        return single
    known = get_args_parser().parse_args(list(arguments))
    if not (known.cfg or known.info):
        return list(arguments)
    try:
        parsed = OverridesParser.create().parse_overrides(known.overrides)
    except HydraException:
        return single  # Hydra names the mistake
    first = {str(o.input_line): _first(o) for o in parsed if o.is_sweep_override()}
    print(f"# the first job of a sweep over: {' '.join(first) or 'the keys of hydra.sweeper.space'}")
    return [a for a in (first.get(a, a) for a in single) if a]


def _first(override: Override) -> str:
    if override.value_type in (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
        return ""
    key = str(override.input_line).split("=", 1)[0]
    return f"{key}={next(override.sweep_string_iterator(), '')}"

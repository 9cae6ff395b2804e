"""The overrides of a command: the hardware that it leaves open, and the arms that its sweeps make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from itertools import islice, product
from math import prod
from typing import Any

from hydra.core.override_parser.types import Glob, Override, RangeSweep
from hydra.errors import HydraException

from sparring.pipeline.config import overrides
from sparring.pipeline.config.groups import is_choice, options_of
from sparring.pipeline.config.messages import first_line
from sparring.stages.errors import ConfigError

MOST_ARMS = 256
MOST_BYTES = 160
"""Of an arm's name, which is that of its folder."""
DETECTED = ("cuda", "cpu")
"""Hardware profiles of the machine at hand, with and without a GPU; others describe a machine of their own."""


def detect_hardware(words: Sequence[str], gpus: int) -> list[str]:
    """Return overrides with hardware=auto (or none) replaced by what the machine has."""
    chosen = [one for one in words if one.strip().startswith("hardware=")]
    if len(chosen) > 1:
        raise ConfigError(f"hardware is set {len(chosen)} times ({', '.join(chosen)}); keep one.")
    others = [one for one in words if one.strip() != "hardware=auto"]
    return others if len(others) == len(words) and chosen else [*others, f"hardware={DETECTED[0 if gpus else 1]}"]


def expand(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return (arm name, overrides) for every combination of the sweeps in `words` (a=1,2 or a=range(..))."""
    values = [_values(one) for one in overrides.parse(words)]
    if (count := prod(map(len, values))) > MOST_ARMS:
        raise ConfigError(f"these sweeps make {count:,} arms; at most {MOST_ARMS} are one plan.")
    arms: dict[str, list[str]] = {}
    for combination in map(list, product(*values)):
        swept = [word for word, options in zip(combination, values, strict=True) if len(options) > 1]
        if combination in arms.values():
            raise ConfigError(f"{' '.join(swept)} is swept twice; give every value once.")
        without_signs = ",".join(word.lstrip("+") for word in swept)
        name = re.sub(r"[^\w.,=@+:~()\[\]{} -]", "-", re.sub(r"['\"]", "", without_signs)) or "only"
        digest = sha256(",".join(swept).encode()).hexdigest()[:8]
        if len(name.encode()) > MOST_BYTES:
            name = f"{name.encode()[:MOST_BYTES].decode(errors='ignore')}-{digest}"
        arms[name if name not in arms else f"{name}-{digest}"] = combination
    return list(arms.items())


def _values(override: Override) -> list[str]:
    """Return the values of a sweep, each as an override; of what is none the override itself."""
    word = override.input_line or ""
    if not override.is_sweep_override():
        return [word]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{word}: an interval has no end of values; name them: choice(...) or range(...).")
    sweep: Any = override.value()
    if isinstance(sweep, RangeSweep):
        count = ((sweep.stop or 0) - (sweep.start or 0)) / sweep.step if sweep.step else 0
        if count > MOST_ARMS:
            raise ConfigError(f"{word}: too many values; at most {MOST_ARMS} arms are one plan.")
    if isinstance(sweep, Glob):
        if not is_choice(override):
            raise ConfigError(f"{word}: {override.key_or_group} is no group whose options glob can list.")
        values = sweep.filter(options_of(override.key_or_group))
    else:
        try:
            values = list(islice(override.sweep_string_iterator(), MOST_ARMS + 1))
        except (HydraException, ValueError, TypeError) as error:
            raise ConfigError(f"{word}: {first_line(error)}") from None
    if not values:
        raise ConfigError(f"{word}: this sweep has no value.")
    return [f"{override.get_key_element()}={one}" for one in values]

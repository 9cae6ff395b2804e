"""Names for steps: the sha256 of what defines them. A value that cannot be hashed is refused, with the remedy."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from sparring.stages.errors import ConfigError


def canonical(value: Any) -> bytes:
    """Return canonical JSON of nested dicts, lists, strings, ints, floats, booleans and None; ConfigError else."""
    return json.dumps(_plain(value, "$"), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def digest(value: Any) -> str:
    """Return the hex sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value)).hexdigest()


def fingerprint(kind: str, version: int, identity: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the 64 hex digits that name a step's definition: its kind, version, identity and inputs' names."""
    return digest({"step": kind, "version": version, "identity": dict(identity), "inputs": dict(inputs)})


def artifact_name(kind: str, fingerprint: str) -> str:
    """Return what an artifact is called: `sample-1f2e3d4c`."""
    return f"{kind}-{fingerprint[:8]}"


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{where}: {value} cannot be part of a fingerprint; use a finite number or null.")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{where}: the key {key!r} is not a string.")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ConfigError(
        f"{where}: a {type(value).__name__} cannot be part of a fingerprint; "
        "turn it into numbers, strings, lists or dicts, or make it a runtime setting."
    )

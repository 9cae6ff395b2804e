"""What a user writes: Hydra's overrides, with text taken as it is written, and one line for every mistake.

A key whose value is text takes what stands after `=`: 007, 1e3, true, ~/x (1).jsonl. Quotes, lists, null, sweeps and
${...} mean what they mean in Hydra.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from sparring.pipeline.config.model import Config
from sparring.stages import fields
from sparring.stages.errors import ConfigError

WORD = re.compile(r"(?P<sign>\+\+|\+|~|)(?P<key>[^\W\d][\w./@-]*)(?P<set>=(?P<value>.*))?", re.DOTALL)
LONGEST_KEY, MOST_QUOTED = 200, 200
EXAMPLE = "write overrides as key=value, such as seed=1"


def parse(words: Sequence[str]) -> list[Override]:
    """Return the overrides; ConfigError where one cannot be read, or a key is set twice."""
    parsed = [_parse(word.strip()) for word in words]
    keys = [one.key_or_group + (f"@{one.package}" if one.package else "") for one in parsed]
    for key, times in Counter(keys).items():
        if times > 1:
            written = ", ".join(one.input_line or "" for one in parsed if one.key_or_group == key.partition("@")[0])
            raise ConfigError(f"{key} is set {times} times ({written}); keep one.")
    return parsed


def keys(parsed: Sequence[Override], groups: Sequence[str]) -> list[str]:
    """Return the dotted keys that overrides set, groups left out."""
    return [
        key
        for one in parsed
        if not one.is_delete() and not one.is_sweep_override()
        if one.key_or_group not in groups or isinstance(one.value(), dict)
        for key in fields.dotted({one.key_or_group: one.value()})
    ]


@cache
def _parse(word: str) -> Override:
    match = WORD.fullmatch(word)
    if match is None or (match["set"] is None and match["sign"] != "~"):
        hint = f"write it without dashes: {word.lstrip('-')}" if word.startswith("-") and "=" in word else EXAMPLE
        raise ConfigError(f"{word or 'an empty word'}: {hint}.")
    key, value = match["key"], match["value"] or ""
    if key.startswith(("hydra.", "hydra/")):
        raise ConfigError(f"{word}: Hydra only composes the configuration here; its own settings are not read.")
    kinds = fields.at(Config, key) if match["set"] else []
    text = bool(kinds) and all(fields.is_text(kind) for kind in kinds)
    override = _read(f"{match['sign']}{key}={_as_text(value.strip(), kinds[0])}" if text else word)
    if override is not None and len(key) <= LONGEST_KEY:
        return override
    if len(key) > LONGEST_KEY or _read(f"{key}=1") is None:
        raise ConfigError(f"{_short(key)} is not a configuration key; `sparring plan --config` prints them.")
    if kinds and not text:
        raise ConfigError(f"{_short(word)}: {fields.described(kinds[0])}.")
    remedy = _short(quoted(key, value))
    raise ConfigError(f"{_short(word)}: Hydra cannot read this value; quote it: {remedy}.")


def _read(word: str) -> Override | None:
    """Return an override as Hydra reads it, None where it cannot."""
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):  # ValueError: an integer of thousands of digits
        return None


def _short(text: str) -> str:
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}..."


def quoted(key: str, value: str) -> str:
    """Return an override as a shell must be given it, for a value that Hydra would read otherwise."""
    inner = value.replace("'", "'\\''").replace('"', '\\"')
    return f"""'{key}="{inner}"'"""


def _as_text(value: str, kind: Any) -> str:
    """Return the value of a key that is text, in Hydra's quotes where it would read something else."""
    if not value or "${" in value or (value == "null" and fields.allows_null(kind)):
        return value
    override = _read(f"key={value}")
    if override is None:
        return _quote(value)
    if override.is_choice_sweep() and "(" not in value:
        return _quote_each(value)
    if override.is_sweep_override():
        return value
    if isinstance(override.value(), list):
        return f"[{_quote_each(value[1:-1])}]" if fields.is_list(kind) else value
    return value if isinstance(override.value(), (str, dict)) else _quote(value)


def _quote_each(text: str) -> str:
    """Return the elements of a list or a sweep, plain ones in quotes; commas in quotes or brackets end none."""
    elements = re.findall(r"(?:'(?:\\.|[^'])*'|\"(?:\\.|[^\"])*\"|\[[^\]]*\]|[^,])+", text)
    plain = [one.strip() for one in elements]
    return ",".join(one if not one or one[0] in "'\"[{" or "${" in one else _quote(one) for one in plain)


def _quote(text: str) -> str:
    return QuotedString(text=text, quote=Quote.single).with_quotes()

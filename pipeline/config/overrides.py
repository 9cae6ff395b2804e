"""What a user writes: Hydra's overrides, with text taken as it is written, and one line for every mistake.

A key whose value is text takes what stands after `=`: 007, 1e3, true, ~/x (1).jsonl. Quotes, lists, null, sweeps and
${...} mean what they mean in Hydra.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
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
    found = [_parse(word.strip()) for word in words]
    named = Counter(name for one in found for name in [one.key_or_group + (f"@{one.package}" if one.package else "")])
    for name, times in named.items():
        if times > 1:
            given = ", ".join(one.input_line or "" for one in found if one.key_or_group == name.partition("@")[0])
            raise ConfigError(f"{name} is set {times} times ({given}); keep one.")
    return found


def keys(found: Sequence[Override], groups: Sequence[str]) -> list[str]:
    """Return the dotted keys that overrides set, groups left out."""
    return [
        key
        for one in found
        if not one.is_delete() and not one.is_sweep_override()
        if one.key_or_group not in groups or isinstance(one.value(), dict)
        for key, _ in _leaves(one.key_or_group, one.value())
    ]


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _leaves(f"{key}.{name}", below)
    else:
        yield key, value


@cache
def _parse(word: str) -> Override:
    match = WORD.fullmatch(word)
    if match is None or (match["set"] is None and match["sign"] != "~"):
        hint = f"write it without dashes: {word.lstrip('-')}" if word.startswith("-") and "=" in word else EXAMPLE
        raise ConfigError(f"{word or 'an empty word'}: {hint}.")
    if match["key"].startswith(("hydra.", "hydra/")):
        raise ConfigError(f"{word}: Hydra only composes the configuration here; its own settings are not read.")
    kinds = fields.at(Config, match["key"]) if match["set"] else []
    text = bool(kinds) and all(fields.is_text(kind) for kind in kinds)
    read = _read(_with(match, _as_text(match, kinds[0])) if text else word)
    if read is not None and len(match["key"]) <= LONGEST_KEY:
        return read
    if len(match["key"]) > LONGEST_KEY or _read(f"{match['key']}=1") is None:
        raise ConfigError(f"{short(match['key'])} is not a configuration key; `sparring plan --config` prints them.")
    if kinds and not text:
        raise ConfigError(f"{short(word)}: {fields.described(kinds[0])}.")
    remedy = short(quoted(match["key"], match["value"] or ""))
    raise ConfigError(f"{short(word)}: Hydra cannot read this value; quote it: {remedy}.")


def _read(word: str) -> Override | None:
    try:
        return _parser().parse_override(word)
    except (HydraException, ValueError):  # ValueError: an integer of thousands of digits
        return None


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def short(text: str) -> str:
    """Return what a message quotes of a text."""
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}..."


def quoted(key: str, value: str) -> str:
    """Return an override as a shell must be given it, for a value that Hydra would read otherwise."""
    inner = value.replace("'", "'\\''").replace('"', '\\"')
    return f"""'{key}="{inner}"'"""


def _with(match: re.Match[str], value: str) -> str:
    return f"{match['sign']}{match['key']}={value}"


def _as_text(match: re.Match[str], kind: Any) -> str:
    """Return the value of a key that is text, in Hydra's quotes where it would read something else."""
    value = match["value"].strip()
    if not value or "${" in value or (value == "null" and fields.allows_null(kind)):
        return value
    read = _read(_with(match, value))
    if read is None:
        return _quote(value)
    if read.is_choice_sweep() and "(" not in value:
        return ",".join(_element(one) for one in _split(value))
    if read.is_sweep_override():
        return value
    if isinstance(read.value(), list):
        return f"[{','.join(_element(one) for one in _split(value[1:-1]))}]" if fields.is_list(kind) else value
    return value if isinstance(read.value(), (str, dict)) else _quote(value)


def _element(text: str) -> str:
    """Return an element of a list or a sweep of texts."""
    return text if not text or text[0] in "'\"[{" or "${" in text else _quote(text)


def _split(text: str) -> list[str]:
    """Return what stands between the commas that are in no quotes and no brackets."""
    return [one.strip() for one in re.findall(r"(?:'(?:\\.|[^'])*'|\"(?:\\.|[^\"])*\"|\[[^\]]*\]|[^,])+", text)]


def _quote(text: str) -> str:
    return QuotedString(text=text, quote=Quote.single).with_quotes()

"""Configuration: Hydra groups in conf/, composed, checked against the model of pipeline/config/model.py; an error names
the key.

What the user wrote is parsed by overrides.py. A key that the user sets is one that the configuration reads: one of
another kind of its group is refused with the options that read it (`OnlyIf`, `ByReference`: stages/fields.py).
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Glob, Override, OverrideType, QuotedString, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from sparring import conf
from sparring.pipeline.config import overrides
from sparring.pipeline.config.checks import cross_field_errors
from sparring.pipeline.config.model import Config
from sparring.stages import fields
from sparring.stages.annotate import oracles
from sparring.stages.errors import ConfigError

CONF = Path(conf.__file__).parent
SHARED = {"judge": "oracle"}
"""Group -> the group whose files are its options: the second judge is one of the oracles."""
MOST_ARMS = 256
MOST_NAMED = 4
"""Options that a message names."""
NEAR = 0.8
"""How alike, of 1, two keys are of which one is proposed for the other."""
ELSEWHERE = {
    "batch_size": "trainer.global_batch",
    "dataset_name": "prompts.dataset",
    "gradient_accumulation_steps": "trainer.global_batch",
    "learning_rate": "trainer.lr",
    "loss_type": "objective",
    "max_new_tokens": "sampler.max_tokens",
    "max_prompt_length": "prompts.max_tokens",
    "model_name_or_path": "policy.path",
    "num_generations": "sampler.k",
    "num_iterations": "iterations",
    "num_train_epochs": "trainer.epochs",
    "optim": "trainer.optimizer",
    "output_dir": "paths.store",
    "per_device_train_batch_size": "hardware.micro_batch",
    "report_to": "tracking.sinks",
    "reward_model": "oracle",
    "run_name": "run.name",
    "save_steps": "trainer.checkpoint_steps",
    "tensor_parallel_size": "policy.tensor_parallel",
}
"""What TRL, transformers and vLLM call a setting -> our key."""
"""Likeness of two words, of 1, from which one may be meant by the other."""
MEMBER = re.compile(r"((?:oracle|judge)(?:\.members\.\w+)+)\.(.+)")
MOST_BYTES = 160
"""Of an arm's name."""
INHERITED = ("stop", "dtype", "tensor_parallel")
"""Of a preset's policy: what policy=folder beside the preset keeps, where it is not set."""


def load(words: Sequence[str]) -> Config:
    """Compose the groups with Hydra overrides; ConfigError names the wrong key, who reads it, and the nearest one."""
    parsed = overrides.parse(words)
    composed = _with_recipe(parsed, _compose(parsed))
    given = set(overrides.keys(parsed, groups()))
    added = [one for one in parsed if (one.is_add() or one.is_force_add()) and one.key_or_group not in groups()]
    if added:  # Hydra would take any key
        known = set(_keys(OmegaConf.to_container(_compose([one for one in parsed if one not in added]))))
        for key in overrides.keys(added, groups()):
            if key not in known and not MEMBER.fullmatch(key) and _readers(key)[1]:
                raise ConfigError(_unread(key, parsed))
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise ConfigError(f"{missing[0]} is not set; add {missing[0]}=... to the command.")
        plain: Any = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_first_lines(error)) from None
    try:
        config = fields.validator(Config).validate_python(plain)
    except ValidationError as error:
        raise ConfigError(_type_message(error, parsed)) from None
    for key in sorted(set(_keys(plain)) - set(_keys(asdict(config)))):
        naming = next((one for one in given if one.rpartition(".")[0] == key.rpartition(".")[0] and _names(one)), None)
        if key in given and naming:
            value = OmegaConf.select(composed, naming)
            raise ConfigError(f"{key} is not read with {naming}={value}; leave one of the two out.")
        if key in given or not fields.at(Config, key):  # what a preset leaves behind is not read
            raise ConfigError(_unread(key, parsed))
    for message in cross_field_errors(config):
        raise ConfigError(message)
    for key, where in _idle(config, composed, given):
        if key in given:
            raise ConfigError(f"{key} has no effect here: it is read only {where}. Leave it out, or change that.")
    return config


def _names(key: str) -> bool:
    """Whether a key tells the kinds of its group apart."""
    return key.rpartition(".")[2] in fields.discriminators(fields.at(Config, key.rpartition(".")[0]))


def _idle(config: Config, composed: DictConfig, given: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (key, where it would be read) of keys that nothing reads in this configuration."""
    yield from fields.unread(config, config)
    named = [(key, where) for key, where in fields.by_reference(Config) if key in given]
    references = OmegaConf.to_yaml(composed) if named else ""
    for key, where in named:
        if f"${{{key}}}" not in references:
            yield key, where


def expand(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return (arm name, overrides) for every combination of the sweeps in `words` (a=1,2 or a=range(..))."""
    parsed = overrides.parse(words)
    choices = [_choices(one) for one in parsed]
    if prod(map(len, choices)) > MOST_ARMS:
        raise ConfigError(f"these sweeps make {prod(map(len, choices)):,} arms; at most {MOST_ARMS} are one plan.")
    arms: dict[str, list[str]] = {}
    for combination in product(*choices):
        swept = [text for text, options in zip(combination, choices, strict=True) if len(options) > 1]
        arm, given = _arm(swept), list(combination)
        if given in arms.values():
            raise ConfigError(f"{' '.join(swept)} is swept twice; give every value once.")
        arms[arm if arm not in arms else f"{arm}-{_digest(swept)}"] = given
    return list(arms.items())


DETECTED = ("cuda", "cpu")
"""Hardware profiles of the machine at hand, with and without a GPU; others describe a machine of their own."""


def _arm(swept: Sequence[str]) -> str:
    """Return what an arm is called: its folder, under that of the run."""
    text = ",".join(one.lstrip("+") for one in swept)
    name = re.sub(r"[^\w.,=@+:~()\[\]{} -]", "-", re.sub(r"['\"]", "", text)) or "only"
    if len(name.encode()) <= MOST_BYTES:
        return name
    return f"{name.encode()[:MOST_BYTES].decode(errors='ignore')}-{_digest(swept)}"


def _digest(swept: Sequence[str]) -> str:
    return sha256(",".join(swept).encode()).hexdigest()[:8]


def detect_hardware(words: Sequence[str], gpus: int) -> list[str]:
    """Return overrides with hardware=auto (or none) replaced by what the machine has."""
    named = [o for o in words if o.strip().startswith("hardware=")]
    if len(named) > 1:
        raise ConfigError(f"hardware is set {len(named)} times ({', '.join(named)}); keep one.")
    kept = [o for o in words if o.strip() != "hardware=auto"]
    return kept if len(kept) == len(words) and named else [*kept, f"hardware={DETECTED[0 if gpus else 1]}"]


def render(config: Config) -> str:
    """Return the resolved configuration as YAML: all keys that are read."""
    plain = asdict(config)
    for key, _ in fields.unread(config, config):
        *above, last = key.split(".")
        group, owner = plain, cast(Any, config)
        for part in above:
            group = group[part]
            owner = owner[part] if isinstance(owner, dict) else getattr(owner, part, {})
        if fields.has_default(owner, last):
            del group[last]
    return OmegaConf.to_yaml(OmegaConf.create(plain))


def _choices(override: Override) -> list[str]:
    """Return the values of a sweep, each as an override; of what is none the override itself."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line}: an interval has no end of values; name them: choice(...) or range(...)."
        )
    value: Any = override.value()
    if isinstance(value, RangeSweep) and _length(value) > MOST_ARMS:
        raise ConfigError(f"{override.input_line}: too many values; at most {MOST_ARMS} arms are one plan.")
    if isinstance(value, Glob):
        if override.key_or_group not in groups():
            raise ConfigError(
                f"{override.input_line}: {override.key_or_group} is no group whose options glob can list."
            )
        values = value.filter(options_of(override.key_or_group))
    else:
        try:
            values = list(islice(override.sweep_string_iterator(), MOST_ARMS + 1))
        except (HydraException, ValueError, TypeError) as error:
            raise ConfigError(f"{override.input_line}: {_first_lines(error)}") from None
    if not values:
        raise ConfigError(f"{override.input_line}: this sweep has no value.")
    return [f"{override.get_key_element()}={one}" for one in values]


def _length(sweep: RangeSweep) -> float:
    start, stop, step = sweep.start or 0, sweep.stop or 0, sweep.step
    return (stop - start) / step if step else 0


@contextmanager
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def _compose(parsed: Sequence[Override]) -> DictConfig:
    for one in parsed:
        if one.key_or_group in groups() and not (one.is_delete() or one.is_sweep_override()):
            _check_option(one)
    try:
        if (composed := _from_groups(parsed)) is not None:
            return composed
        with _hydra():
            return compose("config", overrides=[_hydra_word(one) for one in parsed])
    except Exception as error:  # Hydra raises many kinds for what a user may write
        text = str(error)
    raise ConfigError(_hydra_message(text, parsed))


def _from_groups(parsed: Sequence[Override]) -> DictConfig | None:
    """Compose as Hydra does, the groups once for all arms, then the values; None where Hydra must do it."""
    chosen = [one for one in parsed if one.key_or_group in groups()]
    values = [one for one in parsed if one.key_or_group not in groups()]
    if any(one.type != OverrideType.CHANGE or one.package or one.is_sweep_override() for one in values):
        return None
    composed = copy.deepcopy(_of_groups(tuple(_hydra_word(one) for one in chosen)))
    try:
        for one in values:
            OmegaConf.update(composed, one.key_or_group, one.value(), merge=True)
    except OmegaConfBaseException:  # Hydra says what is wrong
        return None
    return composed


@cache
def _of_groups(words: tuple[str, ...]) -> DictConfig:
    with _hydra():
        return compose("config", overrides=list(words))


def _hydra_word(one: Override) -> str:
    """Return an override as Hydra reads it: `judge=mini` is its `oracle@judge=mini`."""
    word, group = one.input_line or "", one.key_or_group
    if one.package or group not in SHARED:
        return word
    return word.replace(group, f"{SHARED[group]}@{group}", 1)


def _check_option(one: Override) -> None:
    """ConfigError where an override of a group names none of its options."""
    value, names = one.value(), options_of(one.key_or_group)
    name = value.text if isinstance(value, QuotedString) else value
    if not isinstance(name, str):
        raise ConfigError(f"{one.input_line}: name one of {', '.join(names)}.")
    if name not in names:
        near = _nearest(name, names)
        raise ConfigError(f"{one.key_or_group}={name} is not known.{near} There are: {', '.join(names)}.")
    if (one.is_add() or one.is_force_add()) and not one.package:
        raise ConfigError(f"{one.input_line}: the group is there already; write {one.key_or_group}={name}.")


def _with_recipe(parsed: Sequence[Override], composed: DictConfig) -> DictConfig:
    """Beside a preset, let policy=folder keep what the preset's policy is sampled with."""
    names = {one.key_or_group: one.value() for one in parsed}
    if names.get("policy") != "folder" or "experiment" not in names:
        return composed
    recipe = _compose([one for one in parsed if one.key_or_group.partition(".")[0] != "policy"])
    for key in INHERITED:
        if f"policy.{key}" not in names:
            composed.policy[key] = recipe.policy[key]
    return composed


def _hydra_message(text: str, parsed: Sequence[Override]) -> str:
    there = re.search(r"An item is already at '([^']+)'", text)
    if there:
        return f"+{there[1]}: the configuration has this key already; write it without the +."
    gone = re.search(r"Could not delete from config\. '([^']+)' does not exist", text)
    if gone:
        return f"~{gone[1]}: {_unread(gone[1], parsed)}"
    wrong = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text)
    if wrong:
        full = re.search(r"full_key: (\S+)", text)
        return _unread(wrong[1] or (full[1] if full else wrong[2]), parsed)
    sweep = next((one for one in parsed if one.is_sweep_override()), None)
    if sweep:
        key, _, value = (sweep.input_line or "").partition("=")
        plain = value.replace("'", "") if "(" not in value else value
        texts = any(fields.is_text(one) for one in fields.at(Config, sweep.key_or_group))
        quote = f", or quote it: {overrides.quoted(key, plain)}" if texts else ""
        return f"{key}={plain} is a sweep; add -m to run every value as an arm of one plan{quote}."
    return f"{_first_lines(text)} (in: {' '.join(one.input_line or '' for one in parsed)})"


def _first_lines(error: object) -> str:
    """Return what an exception of Hydra's says, in one line, with the key that it names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    key = next((line.partition(":")[2].strip() for line in lines if line.startswith("full_key:")), "")
    return f"{key}: {lines[0]}" if key and key not in lines[0] else lines[0]


def _unread(key: str, parsed: Sequence[Override]) -> str:
    """Say that a key is not read: by which options it is, or that there is none of that name."""
    key = next((one for one in overrides.keys(parsed, groups()) if f"{one}.".startswith(f"{key}.")), key)
    member = MEMBER.fullmatch(key)
    group, readers = _readers(f"oracle.{member[2]}" if member else key)
    if not readers:
        nearest = _nearest(key, known_keys(parsed))
        return f"{key} is not a configuration key.{nearest} `sparring plan --config` prints them all."
    place = f"oracle@{member[1]}" if member else group
    named = [f"{place}={one}" for one in readers[:MOST_NAMED]] + ["others"] * (len(readers) > MOST_NAMED)
    many = f"{named[0]} reads it" if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]} read it"
    reader = f"the member {member[1]}" if member else f"{group}={_choices_of(parsed).get(group)}"
    return f"{key} is not read by {reader}; {many}: add {named[0]}, or leave {key} out."


def _readers(key: str) -> tuple[str, list[str]]:
    """Return a group and those of its options that have a key, first the one that demands it; the nearest group."""
    for group in sorted(groups(), key=lambda name: name != key.partition(".")[0]):
        found = {one: option_keys(group, one) for one in options_of(group) if group != "experiment"}
        readers = [one for one, has in found.items() if any(f"{name}.".startswith(f"{key}.") for name in has)]
        if readers:
            return group, sorted(readers, key=lambda one: found[one].get(key) != "???")
    return "", []


@cache
def option_keys(group: str, option: str, place: str | None = None) -> dict[str, Any]:
    """Return the dotted keys that an option of a group sets, with those of the options that it is made of.

    place: where it is put, if not where its file says.
    """
    path = CONF / SHARED.get(group, group) / f"{option}.yaml"
    package = re.search(r"^# @package (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    if place is None:
        place = group.replace("/", ".") if package is None else package[1].replace("_global_", "")
    plain: Any = OmegaConf.to_container(OmegaConf.load(path))
    own = {name: one for name, one in plain.items() if name != "defaults"}
    dot = f"{place}." if place else ""
    found = {f"{dot}{key}": value for key, value in _leaves(own)} if own else {}
    for line in plain.get("defaults", []):
        for name, one in line.items() if isinstance(line, dict) and not any("override" in n for n in line) else ():
            other, _, at = name.lstrip("/").partition("@")
            found |= option_keys(other, one, place if at == "_here_" else f"{dot}{at or other}")
    return found


def _choices_of(parsed: Sequence[Override]) -> dict[str, Any]:
    """Return group -> the option that is chosen."""
    with _hydra():
        composed = compose("config", overrides=_groups_of(parsed), return_hydra_config=True)
    choices = dict(composed.hydra.runtime.choices)
    return choices | {group: choices.get(f"{shared}@{group}") for group, shared in SHARED.items()}


def _groups_of(parsed: Sequence[Override]) -> list[str]:
    """Return the overrides that choose an option there is of a group."""
    return [
        _hydra_word(one)
        for one in parsed
        if not one.package and one.key_or_group in groups() and one.value() in options_of(one.key_or_group)
    ]


def _type_message(error: ValidationError, parsed: Sequence[Override]) -> str:
    first = error.errors()[0]
    key, annotation = fields.of_error(Config, first["loc"])
    written = next((str(one.input_line).partition("=")[2] for one in parsed if one.key_or_group == key), None)
    value = _shown(first["input"]) if written is None else written.strip("'\"")
    if first["type"].startswith("union_tag"):
        tag = first["ctx"]["discriminator"].strip("'")
        known = fields.tags(annotation, tag)
        chosen = f"={first['ctx']['tag']}" if "tag" in first["ctx"] else " is not set"
        return f"{key}.{tag}{chosen}: choose one of {', '.join(known)}."
    if first["type"] == "value_error" and str(first["ctx"]["error"]):
        return f"{key}={value}: {first['ctx']['error']}."
    if first["type"] == "tuple_type" and (members := re.fullmatch(r"\[(.+)\]", value)):
        quoted = ",".join(f"'{one.strip()}'" for one in members[1].split(","))
        return f'{key}={value}: quote what it lists: "{key}=[{quoted}]".'
    if first["type"] == "string_unicode":
        return f"{key}={value}: must be text in UTF-8."
    if first["type"] == "missing":
        return f"{key} is not set; add {key}=... to the command."
    return f"{key}={value}: {fields.described(annotation)}."


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@cache
def groups() -> tuple[str, ...]:
    """Return the groups of the configuration."""
    folders = {path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("__")}
    return tuple(sorted(folders | SHARED.keys()))


@cache
def options_of(group: str) -> list[str]:
    """Return the options of a group; those of `judge` are the oracles that are not made of others."""
    found = sorted(path.stem for path in (CONF / SHARED.get(group, group)).glob("*.yaml"))
    if group != "judge":
        return found
    return [one for one in found if not oracles.options_of(option_keys("oracle", one)["oracle.kind"]).mixes]


def known_keys(parsed: Sequence[Override] = ()) -> list[str]:
    """Return every key and every group of the configuration, dotted, with the groups that overrides choose."""
    with _hydra():
        plain = OmegaConf.to_container(compose("config", overrides=_groups_of(parsed)))
    return sorted({*_keys(plain), *groups()})


def dotted(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) of every leaf of nested dicts."""
    if not isinstance(node, dict):
        return [(prefix, node)]
    return [leaf for key, value in node.items() for leaf in dotted(value, f"{prefix}.{key}" if prefix else str(key))]


def _leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) of nested dicts; one that is empty is a value."""
    if not isinstance(node, dict) or not node:
        return [(prefix, node)]
    return [leaf for key, below in node.items() for leaf in _leaves(below, f"{prefix}.{key}" if prefix else str(key))]


def _keys(node: Any) -> list[str]:
    return [key for key, _ in _leaves(node)]


def _nearest(name: str, known: Sequence[str]) -> str:
    """Return a question after the key that is near in spelling, or has the same last word in another group."""
    above, _, last = name.rpartition(".")
    same = [one for one in known if one.lower() == name.lower()]
    if same:
        return f" Did you mean {same[0]}?"
    if last in ELSEWHERE:
        return f" Did you mean {ELSEWHERE[last]}?"
    alike = [one for one in known if one.rpartition(".")[2] == last]
    if len(alike) == 1 and (not above or above in groups()):
        return f" Did you mean {alike[0]}?"

    def near(other: str) -> float:
        theirs, _, end = other.rpartition(".")
        if theirs == above or end == last:  # of one word that differs, how much
            return _alike(last, end) if theirs == above else _alike(above, theirs)
        return _alike(name, other) - 0.05

    closest = max(known, key=near, default="")
    return f" Did you mean {closest}?" if closest and near(closest) >= NEAR else ""


def _alike(word: str, other: str) -> float:
    """Return the likeness of two words, of 1; letters that changed places count little."""
    ratio = difflib.SequenceMatcher(None, word, other).ratio()
    return max(ratio, 0.9) if sorted(word) == sorted(other) else ratio

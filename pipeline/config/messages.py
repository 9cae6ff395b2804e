"""What a mistake in an override is answered with: one line that names the key, who reads it, and the nearest one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from hydra.core.override_parser.types import Override
from pydantic import ValidationError

from sparring.pipeline.config import overrides
from sparring.pipeline.config.groups import chosen_options, group_names, known_keys, option_keys, options_of
from sparring.pipeline.config.model import Config
from sparring.stages import fields

OTHER_NAMES = {
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
MOST_NAMED = 4
"""Options that a message names."""
ALIKE = 0.8
"""Likeness, of 1, from which one key is proposed for another."""
MEMBER = re.compile(r"((?:oracle|judge)(?:\.members\.\w+)+)\.(.+)")


def of_hydra(error: Exception, parsed: Sequence[Override]) -> str:
    """Return the message for what Hydra refuses."""
    text = str(error)
    if exists := re.search(r"An item is already at '([^']+)'", text):
        return f"+{exists[1]}: the configuration has this key already; write it without the +."
    if missing := re.search(r"Could not delete from config\. '([^']+)' does not exist", text):
        return f"~{missing[1]}: {of_unread_key(missing[1], parsed)}"
    if wrong := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        full = re.search(r"full_key: (\S+)", text)
        return of_unread_key(wrong[1] or (full[1] if full else wrong[2]), parsed)
    sweep = next((one for one in parsed if one.is_sweep_override()), None)
    if sweep:
        key, _, value = (sweep.input_line or "").partition("=")
        plain = value.replace("'", "") if "(" not in value else value
        is_text = any(fields.is_text(one) for one in fields.at(Config, sweep.key_or_group))
        quote = f", or quote it: {overrides.quoted(key, plain)}" if is_text else ""
        return f"{key}={plain} is a sweep; add -m to run every value as an arm of one plan{quote}."
    return f"{first_line(error)} (in: {' '.join(one.input_line or '' for one in parsed)})"


def first_line(error: Exception) -> str:
    """Return what an exception of Hydra's says, in one line, with the key that it names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    key = next((line.partition(":")[2].strip() for line in lines if line.startswith("full_key:")), "")
    return f"{key}: {lines[0]}" if key and key not in lines[0] else lines[0]


def of_unread_key(key: str, parsed: Sequence[Override]) -> str:
    """Say that a key is not read: with which options it is, or that no option has one of that name."""
    key = next((one for one in overrides.keys(parsed, group_names()) if f"{one}.".startswith(f"{key}.")), key)
    member = MEMBER.fullmatch(key)
    group, readers = options_with(f"oracle.{member[2]}" if member else key)
    if not readers:
        proposal = nearest(key, known_keys(parsed))
        return f"{key} is not a configuration key.{proposal} `sparring plan --config` prints them all."
    place = f"oracle@{member[1]}" if member else group
    named = [f"{place}={one}" for one in readers[:MOST_NAMED]] + ["others"] * (len(readers) > MOST_NAMED)
    all_named = f"{named[0]} reads it" if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]} read it"
    chosen = f"the member {member[1]}" if member else f"{group}={chosen_options(parsed).get(group)}"
    return f"{key} is not read by {chosen}; {all_named}: add {named[0]}, or leave {key} out."


def options_with(key: str) -> tuple[str, list[str]]:
    """Return the group and those of its options that set a key, first the one that demands it; "" and none without.

    Of several groups it is the one that the key is in.
    """
    for group in sorted(group_names(), key=lambda name: name != key.partition(".")[0]):
        keys = {one: option_keys(group, one) for one in options_of(group) if group != "experiment"}
        having = [one for one in keys if any(f"{name}.".startswith(f"{key}.") for name in keys[one])]
        if having:
            return group, sorted(having, key=lambda one: keys[one].get(key) != "???")
    return "", []


def of_type_error(error: ValidationError, parsed: Sequence[Override]) -> str:
    """Return the message for a value that is not of the type or in the range of its key."""
    first = error.errors()[0]
    key, annotation = fields.of_error(Config, first["loc"])
    written = next((str(one.input_line).partition("=")[2] for one in parsed if one.key_or_group == key), None)
    if written is not None:
        value = written.strip("'\"")
    elif first["input"] is None:
        value = "null"
    else:
        value = str(first["input"]).lower() if isinstance(first["input"], bool) else str(first["input"])
    if first["type"].startswith("union_tag"):
        tag = first["ctx"]["discriminator"].strip("'")
        chosen = f"={first['ctx']['tag']}" if "tag" in first["ctx"] else " is not set"
        return f"{key}.{tag}{chosen}: choose one of {', '.join(fields.tags(annotation, tag))}."
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


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a question after the key that is near in spelling, or has the same last word in another group."""
    above, _, last = name.rpartition(".")
    same = [one for one in known if one.lower() == name.lower()]
    if same:
        return f" Did you mean {same[0]}?"
    if last in OTHER_NAMES:
        return f" Did you mean {OTHER_NAMES[last]}?"
    in_other_group = [one for one in known if one.rpartition(".")[2] == last]
    if len(in_other_group) == 1 and (not above or above in group_names()):
        return f" Did you mean {in_other_group[0]}?"

    def likeness(other: str) -> float:
        theirs, _, end = other.rpartition(".")
        if theirs == above:  # of one word that differs, how much
            return _likeness(last, end)
        return _likeness(above, theirs) if end == last else _likeness(name, other) - 0.05

    closest = max(known, key=likeness, default="")
    return f" Did you mean {closest}?" if closest and likeness(closest) >= ALIKE else ""


def _likeness(word: str, other: str) -> float:
    """Return the likeness of two words, of 1; letters that changed places count little."""
    ratio = difflib.SequenceMatcher(None, word, other).ratio()
    return max(ratio, 0.9) if sorted(word) == sorted(other) else ratio

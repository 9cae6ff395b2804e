"""What the configuration of an oracle means to who loads it: its folders and how it is run; with its members.

A place names a member: `` is the oracle itself, `first` a member, `first.second` a member's member.
"""

from __future__ import annotations

from dataclasses import replace

from sparring.pipeline.config.model import judges_of
from sparring.pipeline.sources import Sources
from sparring.stages import model_folder
from sparring.stages.annotate import oracles
from sparring.stages.annotate.config import SCORE, JudgeConfig
from sparring.stages.errors import ConfigError
from sparring.stages.step import Input, StepSpec


def folders(judge: JudgeConfig, sources: Sources, prefix: str = "") -> dict[str, Input]:
    """Return what an oracle is loaded from, by role: `judge`, `encoder`, `first.judge`."""
    options = oracles.options(judge.kind, judge.options)
    roles = () if judge.urls and options.servers else options.inputs
    by_role = {f"{prefix}judge": sources.judge(judge)} if "judge" in roles else {}
    if "encoder" in roles:
        by_role[f"{prefix}encoder"] = sources.minilm()
    for name, member in judge.members.items():
        by_role |= folders(member, sources, f"{prefix}{name}.")
    return by_role


def reads(judge: JudgeConfig) -> str:
    """Return what its time grows with: of a mixture `duels` where one of its members reads duels."""
    found = {oracles.options(one.kind, one.options).cost_unit for _, one in judges_of("", judge) if not one.members}
    return found.pop() if len(found) == 1 else "duels" if "duels" in found else "texts"


def spec(judge: JudgeConfig) -> StepSpec:
    """Return how it is run: one that holds an engine has a process that serves no other step."""
    engine = any(oracles.options(one.kind, one.options).engine and not one.urls for _, one in judges_of("", judge))
    return replace(SCORE, pool="engines") if engine else SCORE


def check_folders(key: str, judge: JudgeConfig, sources: Sources) -> None:
    """DataError where the folder of an oracle, or of a member, is here and cannot be loaded."""
    for place, one in judges_of(key, judge):
        options = oracles.options(one.kind, one.options, place)
        if "judge" in options.inputs and not (one.urls and options.servers):
            found = sources.judge(one)
            if found.files and (one.path or one.repo):
                deep = options.needs_transformers_to_check
                model_folder.check_loaded(found.root, *((one.kind, one.options) if deep else ()))


CHECKS = ("lexical", "mini", "pairrm")
"""Second judges to propose: the first of a kind that is not the oracle's, nor a member's."""


def check_second(oracle: JudgeConfig, judge: JudgeConfig, sources: Sources) -> None:
    """ConfigError when the second judge is the oracle or a member of it, whatever its options."""
    teachers, kinds = _weights_of("oracle", oracle, sources), {one.kind for _, one in judges_of("", oracle)}
    places = dict(judges_of("judge", judge))
    for key, weights in _weights_of("judge", judge, sources).items():
        same = next((place for place, others in teachers.items() if others == weights), None)
        if same:
            other = next((kind for kind in CHECKS if kind not in kinds), "reward_model")
            raise ConfigError(
                f"{key} ({places[key].kind}) has the weights of {same}: a second judge must be independent of the "
                f"oracle; choose another one, such as judge={other}."
            )


def _weights_of(key: str, judge: JudgeConfig, sources: Sources) -> dict[str, str]:
    """Return key -> what a judge and its members are known by: the digest of a folder, or the model at servers."""
    weights = {}
    for place, one in judges_of(key, judge):
        options = oracles.options(one.kind, one.options)
        if one.urls and options.servers:
            weights[place] = f"{one.kind}: {one.options['model']}"
        elif "judge" in options.inputs:
            weights[place] = sources.judge(one).digest
    return weights

"""Whether win rates of two arms may be compared: same responses of the base, same judge. Functions of manifests alone.

What a step `score_<judge>_base` has read says what its win rates are of. Where those of two arms have read different
things, a sentence says which: `seed=1, not 0` is 1 of the arm and 0 of the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparring.pipeline.config import dotted
from sparring.pipeline.store.manifest import Manifest

PLAYED = ("samples", "opponents")
"""Inputs of a score that are responses; the others are the judge's."""


def reason(ours: Manifest, theirs: Manifest, our_base: Manifest | None, their_base: Manifest | None) -> str:
    """Return why win rates against the base are not compared, '' where they are.

    ours, theirs: the scores against the base by a judge, theirs of the baseline. our_base, their_base: the base's
    held-out responses, None where they are no longer in the store.
    """
    if _digest(ours, "samples") == _digest(theirs, "samples"):
        return "both have given the same held-out responses, so they are one policy"
    return "; ".join(part for part in (_of_base(ours, theirs, our_base, their_base), _of_judge(ours, theirs)) if part)


def redone(ours: Manifest, theirs: Manifest) -> bool:
    """Whether the base's responses are those of one definition, but were sampled twice, with other bytes."""
    return not _same(ours, theirs, "digest") and _same(ours, theirs, "name")


def _of_base(ours: Manifest, theirs: Manifest, our_base: Manifest | None, their_base: Manifest | None) -> str:
    if _same(ours, theirs, "digest") or _same(ours, theirs, "name"):
        return ""
    said = []
    if our_base and their_base:
        if _digest(our_base, "policy") != _digest(their_base, "policy"):
            said.append("another base")
        if _digest(our_base, "prompts") != _digest(their_base, "prompts"):
            said.append("other prompts")
        changed = changes(our_base.identity, their_base.identity)
        if changed:
            said.append(f"the base's held-out responses are sampled otherwise ({changed})")
    return "; ".join(said) or "the base's held-out responses are others"


def _of_judge(ours: Manifest, theirs: Manifest) -> str:
    here, there = ours.identity["oracle"], theirs.identity["oracle"]
    if here["kind"] != there["kind"]:
        return f"another judge ({here['kind']}, not {there['kind']})"
    changed = changes(here, there)
    if changed:
        return f"the judge {here['kind']} is set otherwise ({changed})"
    roles = sorted(
        role for role in {*ours.inputs, *theirs.inputs} - {*PLAYED} if not _same(ours, theirs, "digest", role)
    )
    if roles:
        return f"the judge {here['kind']} is read from other files ({', '.join(roles)})"
    if ours.version != theirs.version:
        return f"the judge was asked by another version of the step score ({ours.version}, not {theirs.version})"
    return ""


def changes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Return `seed=1, not 0; k=2, not 1`: the dotted keys whose values differ; '' without any."""
    here, there = dict(dotted(ours)), dict(dotted(theirs))
    keys = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
    return "; ".join(f"{key}={here.get(key)}, not {there.get(key)}" for key in keys)


def _same(ours: Manifest, theirs: Manifest, what: str, role: str = "opponents") -> bool:
    """Whether an input is the same, by its `digest` or by its `name`, the fingerprint."""
    here, there = (one.inputs.get(role, {}).get(what) for one in (ours, theirs))
    return here is not None and here == there


def _digest(manifest: Manifest, role: str) -> str | None:
    return manifest.inputs.get(role, {}).get("digest")

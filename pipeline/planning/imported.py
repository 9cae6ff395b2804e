"""Where a run enters midway: artifacts of the store that iteration 1 takes in place of its own samples, or pairs.

Their policy and prompts must be those of the run: token ids mean nothing to another tokenizer, and what one choice of
prompts holds out another may train on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sparring.pipeline.config.model import Config
from sparring.pipeline.store.manifest import Artifact, Manifest, find
from sparring.stages.errors import DataError
from sparring.stages.step import Input

AGAIN = "import it again with the overrides of this run (`sparring import`)."


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished artifact that stands where a step of iteration 1 would."""

    arm: str
    label: str
    """sample or pairs: that of the step."""
    manifest: Manifest
    source: Input

    @property
    def name(self) -> str:
        """`sample-1f2e3d4c`."""
        return self.source.root.name


def entries(arm: str, config: Config, prompts: str, policy: str) -> list[Entry]:
    """Return what an arm enters with, samples first; DataError when it is not there or does not fit.

    prompts: the fingerprint of the step; policy: the digest of the base policy.
    """
    store, chosen = Path(config.paths.store), config.entry
    try:
        found = _pairs(arm, store, chosen.pairs) if chosen.pairs else []
        if not found and chosen.samples:
            found = [_entry(arm, "sample", *find(store, chosen.samples))]
        for samples in found[:1]:
            _check_fit(samples, prompts, policy)
    except DataError as error:
        key = f"entry.pairs={chosen.pairs}" if chosen.pairs else f"entry.samples={chosen.samples}"
        raise DataError(f"{key}: {error}") from None
    return found


def _pairs(arm: str, store: Path, name: str) -> list[Entry]:
    """Return the samples of the bytes that the pairs were made of, and the pairs."""
    pairs = _entry(arm, "pairs", *find(store, name))
    made_of = pairs.manifest.inputs["samples"]
    named = f"sample-{made_of['name'][:8]}"
    for path in sorted(store.glob("sample-*"), key=lambda path: (path.name != named, path.name)):
        try:
            artifact, manifest = find(store, path.name)
        except DataError:  # another one, not finished or corrupt
            continue
        if manifest.content == made_of["digest"]:
            return [_entry(arm, "sample", artifact, manifest), pairs]
    raise DataError(f"the samples it was made of are not in {store} any more; {AGAIN}")


def _entry(arm: str, label: str, artifact: Artifact, manifest: Manifest) -> Entry:
    if damaged := next(artifact.damaged_files(manifest), None):
        raise DataError(f"{damaged}; {AGAIN}")
    source = artifact.as_input("samples" if label == "sample" else label, manifest)
    return Entry(arm=arm, label=label, manifest=manifest, source=replace(source, root=source.root.absolute()))


def _check_fit(samples: Entry, prompts: str, policy: str) -> None:
    inputs = samples.manifest.inputs
    if inputs.get("policy", {}).get("digest") != policy:
        raise DataError(f"{samples.name} was tokenized for another policy; {AGAIN}")
    if inputs.get("prompts", {}).get("name") != prompts:
        raise DataError(f"{samples.name} was made beside other prompts, of which others are held out; {AGAIN}")

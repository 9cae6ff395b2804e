"""What a run takes from outside: the policy, the encoder, the judges, the prompts, each with its content digest.

Embedded parts come out of ordinary packages; the rest is local, or of the hub. Nothing heavy is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import cache, cached_property
from pathlib import Path

import sparring.stages.annotate
import sparring.stages.sample
from sparring.pipeline.config.model import Config
from sparring.pipeline.sources.hub import Hub, download_missing, local_dataset
from sparring.pipeline.store.files import content_digest, external
from sparring.stages import model_folder
from sparring.stages.annotate.config import EmbeddedEncoder, EncoderConfig, JudgeConfig
from sparring.stages.chat import check_control
from sparring.stages.digests import cached_sha256
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.model_folder import read_json
from sparring.stages.sample import embedded
from sparring.stages.sample.config import (
    EmbeddedPolicy,
    EngineSampler,
    FilePrompts,
    HubPrompts,
    PolicyConfig,
    PromptsConfig,
    StarterPrompts,
)
from sparring.stages.sample.engine import EngineSettings
from sparring.stages.sample.engine_vllm import at_start
from sparring.stages.step import File, Input, Workers
from sparring.stages.train.config import LAST, check_layer

EMBEDDED_JUDGES = Path(sparring.stages.annotate.__file__).parent / "judges"


class Sources:
    """Resolve configuration to inputs. Digests of large files are cached; revisions of the hub are pinned."""

    def __init__(self, pins: dict[str, str] | None = None, assume: bool = False) -> None:
        self.hub = Hub(pins, assume)

    def policy(self, config: PolicyConfig) -> Input:
        """Return the base policy. One that is not prepared or downloaded yet has its digest and no files to read."""
        if isinstance(config, EmbeddedPolicy):
            return self._embedded_policy
        if config.path is None:
            model = self.hub.model(config.repo, config.revision)
            if model.files:
                check_policy_folder(model.root)
            return model
        folder = Path(config.path)
        check_policy_folder(folder)
        return _external("policy", folder)

    @cached_property
    def _embedded_policy(self) -> Input:
        folder = embedded.place()
        if embedded.is_prepared():  # reads the cache of digests once a file
            return _external("policy", folder)
        return _recorded("policy", folder, embedded.POLICY_FILES)

    def encoder(self, config: EncoderConfig) -> Input:
        """Return the sentence encoder's folder."""
        if isinstance(config, EmbeddedEncoder):
            return self.minilm()
        if config.path is None:
            return replace(self.hub.model(config.repo, config.revision), role="encoder")
        folder = Path(config.path)
        if not (folder / "modules.json").is_file():
            raise DataError(
                f"encoder.path={folder}: no modules.json there; an encoder is a sentence-transformers folder."
            )
        return _external("encoder", folder)

    def minilm(self) -> Input:
        """Return the embedded encoder; where its package is not installed, its digest and no files to read."""
        if embedded.has_encoder():
            return _external("encoder", embedded.encoder_folder())
        return _recorded("encoder", Path(), embedded.ENCODER_FILES)

    def judge(self, config: JudgeConfig) -> Input:
        """Return the folder of an oracle or second judge: `path`, else of the hub's `repo`, else the embedded one."""
        folder = Path(config.path) if config.path else EMBEDDED_JUDGES / config.kind
        if config.repo and not config.path:
            return replace(self.hub.model(config.repo, config.revision or "main"), role="judge")
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder; set oracle.path (or judge.path) to a {config.kind}.")
        return _external("judge", folder)

    def prompts(self, config: PromptsConfig) -> dict[str, Input]:
        """Return the files of prompts by role: `source`, or `source_1` .. `source_n` of a split that is published."""
        if isinstance(config, StarterPrompts):
            return {"source": _external("source", Path(sparring.stages.sample.__file__).parent / "starter.jsonl")}
        place = config.dataset if config.path is None else config.path
        if "{slice}" not in place:
            return {"source": self._prompts(config, place)}
        if config.slices is None:
            raise ConfigError(f"prompts: {place} has a place for the slice; say how many there are: prompts.slices=3.")
        numbers = range(1, config.slices + 1)
        return {f"source_{i}": self._prompts(config, place.replace("{slice}", str(i))) for i in numbers}

    def imported(self, path: Path, split: str | None) -> Input:
        """Return a file of responses or pairs, or those of a folder."""
        return _files("source", path, split, "--split")

    def _prompts(self, config: FilePrompts | HubPrompts, place: str) -> Input:
        path = Path(place)
        if isinstance(config, HubPrompts) and path.is_dir():
            if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
                return local_dataset(path, config.subset, config.split)
            if config.path is None:
                raise ConfigError(
                    f"prompts.dataset={path}: save_to_disk wrote it; read it by prompts=file prompts.path={path}"
                )
        if isinstance(config, HubPrompts) and config.path is None:
            return self.hub.dataset(place, config.revision, config.subset, config.split)
        if not path.exists():
            raise DataError(f"prompts.path={path}: there is no such file.")
        return _files(
            "source", path, config.split if path.is_dir() or config.source == "file" else None, "prompts.split"
        )


def _external(role: str, path: Path) -> Input:
    return _cached_external(role, path, Path.cwd())


@cache
def _cached_external(role: str, path: Path, _working_folder: Path) -> Input:
    """Return the files at `path`, which may be relative to the working folder."""
    return external(role, path, cached_sha256)


def _files(role: str, path: Path, split: str | None, key: str) -> Input:
    """Return a file, or the data files of a folder in their order, which their names are not part of."""
    from sparring.stages.sample.data_files import data_files

    if path.is_file() and split is None:
        return _external(role, path)
    files = tuple(
        File(
            name=f"{role}-{number:05d}",
            path=str(one.relative_to(path)),
            sha256=cached_sha256(one),
            bytes=one.stat().st_size,
        )
        for number, one in enumerate(data_files(path, split, key))
    )
    return Input(role=role, root=path.absolute(), digest=content_digest(files), files=files)


def _recorded(role: str, folder: Path, sha256: Mapping[str, str]) -> Input:
    """Return files that are not here yet, with the digests that they will have."""
    files = tuple(File(name=n, path=n, sha256=s, bytes=0) for n, s in sha256.items())
    return Input(role=role, root=folder, digest=content_digest(files), files=files)


def fetch(configs: Iterable[Config], inputs: Iterable[Input]) -> bool:
    """Prepare the embedded policy and download from the hub what is not here yet; return whether anything was not."""
    unprepared = any(c.policy.source == "embedded" for c in configs) and not embedded.is_prepared()
    if unprepared:
        print("preparing the embedded policy (once, about half a minute)", file=sys.stderr)
        done = subprocess.run([sys.executable, "-m", "sparring.stages.sample.embedded"], check=False)
        if done.returncode:
            raise DataError("the embedded policy could not be prepared (see above); run `make setup`.")
    return download_missing(inputs) or unprepared


def check_policy_folder(folder: Path) -> None:
    """DataError when `folder` is not a chat model in the transformers layout with safetensors weights."""
    if not folder.is_dir():
        raise DataError(f"policy.path={folder}: there is no such folder.")
    if (folder / "adapter_config.json").is_file():
        raise DataError(
            f"{folder}: adapter_config.json: this is an adapter, or a model with one beside it. Merge it into its "
            "model first (peft: merge_and_unload, then save_pretrained), and remove adapter_config.json."
        )
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no config.json; a policy is a folder in the transformers layout.")
    if not list(folder.glob("*.safetensors")):
        raise DataError(
            f"{folder}: no *.safetensors; other weight formats are not read. Save the model with safetensors."
        )
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
        raise DataError(
            f"{folder}: no tokenizer (tokenizer.json or tokenizer.model); copy the model's tokenizer there."
        )
    has_template = (folder / "chat_template.jinja").is_file()
    if not has_template and (folder / "tokenizer_config.json").is_file():
        has_template = bool(read_json(folder / "tokenizer_config.json").get("chat_template"))
    if not has_template:
        raise DataError(
            f"{folder}: no chat template; add chat_template.jinja (or chat_template in tokenizer_config.json). "
            "Base models without one cannot be played as chat models."
        )
    model_folder.checked(folder)


def check_policy(config: Config, policy: Input) -> None:
    """Refuse settings that the policy cannot take: its context, layers, adapter, control tokens, and the engine."""
    if policy.wanted or not os.path.isdir(policy.root):
        return  # checked once it is downloaded or prepared
    sampler, stop = config.sampler, config.policy.stop
    longest = config.prompts.max_tokens + sampler.max_tokens
    check_context(policy, longest)
    if isinstance(sampler, EngineSampler) and sampler.engine_args:
        workers = Workers(gpus=config.hardware.engine_gpus)
        engine = EngineSettings(
            sampler=sampler,
            gpu_memory=config.hardware.gpu_memory,
            kv_cache_gb=config.hardware.kv_cache_gb,
            workers=workers,
            max_model_len=longest,
            stop_ids=(),
        )
        model_folder.check_with(policy.root, model_folder.ENGINE, asdict(at_start(engine)))
    if config.trainer.adapter.name != "off":
        model_folder.check_with(policy.root, model_folder.ADAPTER, asdict(config.trainer.adapter))
    layer = getattr(config.repulsion, "layer", LAST)
    if isinstance(config.policy, EmbeddedPolicy) and layer == LAST and not stop:
        return  # all of it is known to work
    facts = model_folder.checked(policy.root)
    if facts is None:
        return  # transformers is not installed
    if facts.layers is not None and layer != LAST:
        check_layer(layer, facts.layers)
    check_control(stop, facts.control)
    if not facts.ends and not stop:
        raise DataError(
            f"{policy.root}: no token ends a response: set eos_token in tokenizer_config.json or eos_token_id in "
            "generation_config.json, or name one: policy.stop=[...]."
        )
    if isinstance(sampler, EngineSampler) and sampler.engine == "vllm":
        chosen = {"model_impl", "hf_overrides"} & sampler.engine_args.keys()
        why = facts.vllm if not chosen else ""
        why = why or ("" if config.hardware.engine_gpus else facts.vllm_cpu)
        if why:
            raise ConfigError(f"sampler.engine=vllm: {why} ({policy.root}); choose sampler=transformers.")


def check_context(policy: Input, longest: int) -> None:
    """ConfigError when prompt plus response (`longest` tokens) do not fit the policy's context."""
    if policy.wanted:
        return  # looked at again when it is here
    settings = policy.root / "config.json"
    context = read_json(settings).get("max_position_embeddings") if os.path.isfile(settings) else None
    if context is not None and longest > context:
        raise ConfigError(
            f"prompts.max_tokens + sampler.max_tokens = {longest} exceeds the policy's context of {context} tokens "
            f"({settings}); lower one of the two."
        )

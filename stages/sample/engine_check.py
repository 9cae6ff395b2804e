"""Whether an engine takes the values of sampler.engine_args, as its own types and validators say; no weight is read.

    check(folder, settings)    ConfigError names the argument

vLLM on a CPU makes its whole configuration, as at the engine's start, and its loader. Of GPUs, which may be those of
another machine, each value is held against the fields of its configurations alone: types, bounds and choices.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sparring.stages.errors import ConfigError
from sparring.stages.outline import MOST, one_line
from sparring.stages.sample.config import EngineSampler, ServerSampler
from sparring.stages.sample.engine import EngineSettings
from sparring.stages.sample.engine_vllm import arguments_of
from sparring.stages.vllm import import_vllm


def check(folder: Path, settings: EngineSettings) -> None:
    """ConfigError where the engine does not start with an argument."""
    sampler = settings.sampler
    if isinstance(sampler, ServerSampler):
        return
    if sampler.engine == "transformers":
        _check_attention(folder, sampler.engine_args.get("attn_implementation"), settings.workers.gpus)
        return
    import_vllm(1)
    from vllm.platforms import current_platform

    if settings.workers.gpus or not current_platform.is_cpu():
        _check_fields(sampler.engine_args)
    else:
        _check_start(folder, settings, sampler)


def _refused(name: str, value: Any, engine: str, error: Exception) -> ConfigError:
    place = f"sampler.engine_args.{name}={json.dumps(value)}"
    return ConfigError(f"{place}: {engine} refuses it ({in_words(error)}); change it or leave it out.")


def in_words(error: Exception) -> str:
    """Return a validator's message about a value, without the rest of a report of pydantic."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        text = "; ".join(dict.fromkeys(one["msg"].removeprefix("Value error, ") for one in error.errors()))
        text = " ".join(text.split())
        return f"{text[:MOST]} ..." if len(text) > MOST else text.removesuffix(".")
    text = one_line(error)
    return text if text.endswith("...") else text.removesuffix(".")


def _check_attention(folder: Path, value: Any, gpus: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if value is None:
        return  # as transformers chooses
    name, config = "attn_implementation", AutoConfig.from_pretrained(folder, local_files_only=True)
    if value == "paged|eager":
        raise _refused(name, value, "transformers", ValueError("it is for continuous batching; use eager"))
    if isinstance(value, str) and "/" in value and find_spec("kernels") is None:
        raise _refused(name, value, "transformers", ImportError("a kernel of the hub needs the package kernels"))
    package = "flash_attn" if value == "flash_attention_2" else None
    if gpus and package and find_spec(package):
        return  # only the GPU shows whether it runs
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, attn_implementation=value)
    except Exception as error:
        raise _refused(name, value, "transformers", error) from None


def _check_start(folder: Path, settings: EngineSettings, sampler: EngineSampler) -> None:
    """Start vLLM's engine up to where it would load the model."""
    llm, configured = import_vllm(1), _stop_when_configured()

    def starts(arguments: Mapping[str, Any]) -> Exception | None:
        tried = replace(settings, sampler=replace(sampler, engine_args=dict(arguments)))
        try:
            llm(str(folder), **arguments_of(tried))
        except configured:
            return None
        except Exception as error:
            return error
        return None

    error = starts(sampler.engine_args)
    if error is None or starts({}) is not None:
        return  # no argument is at fault
    for name, value in sampler.engine_args.items():
        alone = starts({name: value})
        if alone is not None:
            raise _refused(name, value, "vllm", alone)
    raise ConfigError(f"sampler.engine_args: vllm refuses them together ({in_words(error)}).")


def _stop_when_configured() -> type[Exception]:
    """Have vLLM end where its configuration is made, with the exception returned; no engine starts in this process.

    The blocks and the format of weights are checked where the engine would: beyond the configuration.
    """
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.worker.utils import select_common_block_size

    class Configured(Exception):
        pass

    def end(_: Any, vllm_config: Any, *args: Any, **more: Any) -> None:
        get_model_loader(vllm_config.load_config)
        if not vllm_config.model_config.is_attention_free:
            select_common_block_size(vllm_config.cache_config.block_size, [CPUAttentionBackend])
        raise Configured

    engine: Any = LLMEngine
    engine.__init__ = end
    return Configured


def _check_fields(arguments: Mapping[str, Any]) -> None:
    """ConfigError where a value fits no field of that name in vLLM's configurations; else the engine's own."""
    import vllm.config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER as FORMATS

    for name, known in (("quantization", QUANTIZATION_METHODS), ("load_format", FORMATS)):  # any text, by its type
        value = arguments.get(name)
        if value is not None and value not in known:
            raise _refused(name, value, "vllm", ValueError(f"choose {', '.join(sorted(known))}"))
    classes = [one for one in vars(vllm.config).values() if hasattr(one, "__pydantic_fields__")]
    for name, value in arguments.items():
        fields = [one.__pydantic_fields__[name] for one in classes if name in one.__pydantic_fields__]
        hints = [typing.Annotated[one.annotation, *one.metadata] if one.metadata else one.annotation for one in fields]
        hints = hints or [EngineArgs.__dataclass_fields__[name].type]
        errors = [error for hint in hints if (error := _mismatch(hint, value)) is not None]
        if value is not None and len(errors) == len(hints):
            raise _refused(name, value, "vllm", errors[0])


def _mismatch(hint: Any, value: Any) -> Exception | None:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    kinds = [one for one in (hint, *typing.get_args(hint)) if isinstance(one, type) and issubclass(one, Enum)]
    if kinds and isinstance(value, str):  # vLLM takes the name of a member
        names = {name for kind in kinds for name in kind.__members__}
        return None if value.upper() in names else ValueError(f"choose {', '.join(sorted(names))}")
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        return error
    except Exception:
        return None  # not a type that can be held against a value alone
    return None

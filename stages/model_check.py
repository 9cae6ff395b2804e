"""Whether the folder of a policy, or of a judge, can be used as such, without reading its weights.

    python -m sparring.stages.model_check FOLDER                 a policy's: prints a JSON object, Facts or an `error`
    python -m sparring.stages.model_check FOLDER KIND OPTIONS    a judge's: KIND as oracle.kind, OPTIONS as JSON; or a
                                                                 policy's with an adapter, the settings of one, or with
                                                                 an engine

Started by stages/model_folder.py in a process of its own: the imports take seconds, which no plan has.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sparring.stages.annotate import oracles
from sparring.stages.errors import DataError, SparringError
from sparring.stages.fields import validator
from sparring.stages.model_folder import ADAPTER, ENGINE, INDEX, WEIGHTS, read_json
from sparring.stages.outline import check_read, one_line, outline
from sparring.stages.plain import listed
from sparring.stages.sample import engine_check
from sparring.stages.sample.engine import EngineSettings, stop_ids
from sparring.stages.train.config import Adapter
from sparring.stages.vllm import cpu_head_sizes, known_architectures, quickly, runner

QUESTION = "Which rivers reach the sea?"
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Of config.json's layer_types: layers whose heads have the size that it gives."""
GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def facts(folder: Path) -> dict[str, Any]:
    """Return the Facts of a policy's folder; DataError where it cannot be sampled from and trained."""
    config = _config(folder)
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if layers is not None and layers < 1:
        raise DataError(f"{folder / 'config.json'}: num_hidden_layers is {layers}; a policy has one layer or more.")
    _check_numbers(folder / "config.json", config.to_dict())
    model, beside = _model(folder, config)
    return {
        "layers": layers,
        "vllm": _architecture(model) or _unreadable(folder, beside),
        "vllm_cpu": _head_size(model),
        **_tokens(folder, model.get_input_embeddings().weight.shape[0]),
    }


def _config(folder: Path) -> Any:
    """Return the configuration of a causal language model that transformers itself has the code of."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    path = folder / "config.json"
    raw = read_json(path)
    kind, own_code = raw["model_type"], raw.get("auto_map") or {}
    remote = " It has code of its own (auto_map), which is never run."
    if kind not in CONFIG_MAPPING:
        more = remote if own_code else ""
        raise DataError(f"{path}: transformers {__version__} has no model_type {kind}.{more} Choose another policy.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise DataError(f"{path}: transformers cannot read it ({one_line(error)}).") from None
    if type(config) not in AutoModelForCausalLM._model_mapping:
        more = remote if "AutoModelForCausalLM" in own_code else ""
        raise DataError(f"{path}: a {kind} is no causal language model of transformers {__version__}.{more}")
    if getattr(config, "is_encoder_decoder", False):
        raise DataError(f"{path}: this {kind} has an encoder and a decoder; a policy is a causal language model.")
    if type(config) in AutoModelForMaskedLM._model_mapping and getattr(config, "is_decoder", None) is False:
        raise DataError(
            f"{path}: this {kind} is an encoder (is_decoder is false); a policy is a causal language model."
        )
    return config


def _check_numbers(path: Path, config: Mapping[str, Any], rotations: bool = False) -> None:
    """DataError where a number of a configuration, at any depth, makes every output of the model no number."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_numbers(path, value, rotations or key == "rope_parameters")
        elif not isinstance(value, (int, float)):
            continue
        elif key == "rope_theta" and rotations and value <= 0:
            raise DataError(f"{path}: rope_theta is {value}; it is the base of powers, and must be positive.")
        elif key.endswith(("_eps", "_epsilon")) and value < 0:
            raise DataError(f"{path}: {key} is {value}; it is added below a root, and must be at least 0.")


def _model(folder: Path, config: Any) -> tuple[Any, list[str]]:
    """Return the model without its weights, and what its files hold beside it.

    DataError where they lack a weight, or hold more of the network than config.json has.
    """
    from transformers import AutoModelForCausalLM

    model, missing, unknown = outline(AutoModelForCausalLM, folder, config)
    if missing:
        instead = f", and have {listed(unknown)} instead" if unknown else ""
        raise DataError(
            f"{folder}: its files lack {listed(missing)} of a {type(model).__name__}{instead}; transformers would fill "
            "in random numbers. Save all of the model, or copy the folder again."
        )
    return model, check_read(folder, model, unknown)


def _tokens(folder: Path, rows: int) -> dict[str, Any]:
    """Return the control tokens and whether responses end; DataError where text cannot become ids of the model's.

    rows: of the embedding.
    """
    from transformers import GenerationConfig

    from sparring.stages.chat import Chat, check_turns, load_tokenizer

    tokenizer = load_tokenizer(folder)
    chat = Chat(tokenizer)
    written = check_turns(chat, folder, QUESTION)
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    if used := [token for token, i in beyond.items() if i not in chat.control_ids or i in written]:
        raise DataError(
            f"{folder}: the embedding has {rows} rows, and its tokenizer tokens beyond them: {listed(used)}. Copy the "
            "model's own tokenizer, or resize the model: model.resize_token_embeddings(len(tokenizer))."
        )
    path = folder / "generation_config.json"
    if path.is_file():
        listed_ends = read_json(path).get("eos_token_id")
        for end in listed_ends if isinstance(listed_ends, list) else [listed_ends]:
            if end is not None and type(end) is not int:
                raise DataError(f"{path}: eos_token_id is {listed_ends!r}; give the id of a token, or a list of them.")
        try:
            GenerationConfig.from_pretrained(folder)
        except Exception as error:
            raise DataError(f"{path}: transformers cannot read it ({one_line(error)}).") from None
    ends = stop_ids(folder, tokenizer.eos_token_id, chat.end_of_turn())
    if wrong := [end for end in ends if not 0 <= end < rows]:
        key = (
            "eos_token in tokenizer_config.json"
            if wrong[0] == tokenizer.eos_token_id
            else f"eos_token_id in {path.name}"
        )
        raise DataError(
            f"{folder}: {key} is the token {wrong[0]}, and the embedding has {rows} rows; name another one."
        )
    control = sorted(tokenizer.convert_ids_to_tokens(sorted(chat.control_ids)))
    return {"control": control, "ends": bool(ends)}


def _architecture(model: Any) -> str:
    """Return why vLLM cannot run a model, by the `architectures` of its config.json; '' where it can, or may."""
    import transformers

    names, in_vllm = model.config.architectures or [], known_architectures()
    right = f'["{type(model).__name__}"]'
    if not names or not in_vllm:
        return ""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"it reads no architectures {names!r} of config.json, which should be {right}"
    if any(not plugin.module.startswith("vllm.") for plugin in entry_points(group="vllm.general_plugins")):
        return ""  # it may add models
    first = next((name for name in names if name in in_vllm or runner(name)), "")
    base = first in in_vllm and first.endswith("Model")  # vLLM has the head of LlamaModel too
    if runner(first) == "pooling" and not base:
        return f"it generates nothing with the architectures {names} of config.json, which should be {right}"
    if not in_vllm.intersection(names) and names[0].endswith(GENERATIVE):
        made = getattr(transformers, names[0], None)
        if made is None or not (made.is_backend_compatible() or made._can_set_attn_implementation()):
            return f"vLLM has no {names[0]}"
    if not _same_network(getattr(transformers, names[0], None), model):
        return f"it would make another network, by the architectures {names} of config.json, which should be {right}"
    return ""


def _unreadable(folder: Path, beside: Sequence[str]) -> str:
    """Return why vLLM does not read the files of a folder; '' where it does. beside: weights beside the network."""
    others = [path.name for path in folder.glob("*.safetensors") if path.name != WEIGHTS]
    if others and not (folder / INDEX).is_file() and not any(name.startswith("consolidated") for name in others):
        return f"it would read {listed(others)} too, as there is no {INDEX}"
    return f"it has no place for {listed(beside)} of the files" if beside else ""


def _same_network(other: Any, model: Any) -> bool:
    """Whether another class of transformers makes of a configuration the weights that a model has; also if unknown."""
    import torch

    if other is None or not other.__name__.endswith(GENERATIVE) or isinstance(model, other):
        return True
    try:
        with torch.device("meta"):
            made = other(model.config)
    except Exception:
        return False
    return {n: p.shape for n, p in made.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def _head_size(model: Any) -> str:
    """Return why vLLM's attention on a CPU cannot run a model; '' where it can, or its heads are of another kind."""
    config, sizes = model.config.get_text_config(), cpu_head_sizes()
    heads = getattr(config, "num_attention_heads", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not sizes or not isinstance(heads, int) or getattr(config, "kv_lora_rank", None) or not kinds <= ATTENTION:
        return ""
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    rows = {p.shape[0] for name, p in model.named_parameters() if name.endswith("attn.q_proj.weight")}
    if rows != {size * heads} or size in sizes:
        return ""
    return f"vLLM on a CPU has no attention for heads of {size}, only of {', '.join(map(str, sizes))}"


def check(folder: Path, kind: str = "", options: str = "{}") -> dict[str, Any]:
    """Return the Facts of a policy's folder, nothing of a judge's; DataError or ConfigError where it cannot be used."""
    if not kind:
        return facts(folder)
    if kind == ADAPTER:
        from sparring.stages.train.model.adapter import attach

        model, _ = _model(folder, _config(folder))
        attach(model, validator(Adapter).validate_python(json.loads(options)), seed=0)
        return {}
    if kind == ENGINE:
        engine_check.check(folder, validator(EngineSettings).validate_python(json.loads(options)))
        return {}
    oracles.options(kind, json.loads(options)).check_folder(folder)
    return {}


def main(folder: str, *words: str) -> None:
    """Print the facts of a folder, or the error."""
    with quickly():
        from transformers import AutoModel  # noqa: F401
        from transformers.utils import logging
    logging.disable_progress_bar()
    try:
        answer = check(Path(folder), *words)
    except SparringError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A model without its weights: transformers' own loading, on tensors that have the files' shapes and no memory.

What transformers renames, joins, splits or ties when it loads is treated as it is then, and its report names what it
would make up. Takes a fraction of a second, whatever the size of the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparring.stages.errors import DataError
from sparring.stages.model_folder import weights
from sparring.stages.plain import listed

MOST = 300
"""Characters of a library's message that are passed on."""
NO_WEIGHT = re.compile(r"rotary(_pos)?_emb\.|position_ids$|attn\.masked_bias$|attention\.masked_bias$")
"""Buffers that old checkpoints hold, and that every library makes anew."""
FURTHER = re.compile(r"(^|\.)(mtp|nextn)(_\w+)?\.")
"""Of layers that predict the tokens after the next one: no policy is sampled or trained with them."""


def outline(auto: Any, folder: Path, config: Any) -> tuple[Any, set[str], set[str]]:
    """Return the model of a folder on the `meta` device, the weights that its files lack, and theirs that it lacks.

    auto: a class such as AutoModelForCausalLM. A weight of another shape is a DataError.
    """
    import torch

    with torch.device("meta"):
        try:
            made = auto.from_config(config)
        except Exception as error:
            raise DataError(
                f"{folder / 'config.json'}: transformers makes no model of it ({one_line(error)})."
            ) from None
        tensors = {name: torch.empty(tensor.shape) for name, tensor in weights(folder).items()}
    kind = type(made)
    try:
        model, report = kind.from_pretrained(
            None,
            config=made.config,
            state_dict=tensors,
            device_map="meta",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise DataError(f"{folder}: transformers loads no {kind.__name__} of it ({one_line(error)}).") from None
    check_shapes(folder, report)
    return model, set(report["missing_keys"]), set(report["unexpected_keys"])


def check_read(folder: Path, model: Any, unknown: set[str]) -> list[str]:
    """DataError where the files hold a part of the network that its config.json does not have.

    Return the weights beside it, heads of other tasks such as v_head or score. Buffers are neither: integers, causal
    masks (1, 1, n, n), and the model's own that are not stored.
    """
    files, base, buffers = weights(folder), f"{model.base_model_prefix}.", dict(model.named_buffers())
    parts = model._modules.keys() | model.base_model._modules.keys()  # a base model's names have no prefix
    config = model.config.get_text_config()
    count, further = getattr(config, "num_hidden_layers", 0), getattr(config, "num_nextn_predict_layers", 0) or 0
    dropped: list[str] = []
    beside: list[str] = []
    for name in sorted(unknown):
        tensor = files.get(name) or files.get(name.removeprefix(base))
        layer = re.search(r"\blayers\.(\d+)\.", name)
        if not (
            name in buffers
            or (tensor is not None and (tensor.dtype[0] in "IUB" or tensor.shape[:-2] == (1, 1)))
            or NO_WEIGHT.search(name)
            or FURTHER.search(name)
            or (layer and count <= int(layer[1]) < count + further)
        ):
            (dropped if name.partition(".")[0] in parts else beside).append(name)
    if dropped:
        raise DataError(
            f"{folder}: its files hold {listed(dropped)}, which a {type(model).__name__} of its config.json does not "
            "read: config.json does not fit the weights. Copy both of one model."
        )
    return beside


def check_shapes(folder: Path, report: Mapping[str, Any]) -> None:
    """DataError where a weight of the files does not fit the model; report: transformers' own of a loading."""
    for name, has, wanted in sorted(report["mismatched_keys"], key=str):
        raise DataError(
            f"{folder}: weight {name} is {tuple(has)}, its config.json expects {tuple(wanted)}; copy both of one model."
        )


def one_line(error: Exception) -> str:
    """Return a library's message on one line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= MOST else f"{text[:MOST]} ..."

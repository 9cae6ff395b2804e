"""A model without its weights: transformers' own loading, on tensors that have the files' shapes and no memory.

What transformers renames, joins, splits or ties when it loads is treated as it is then, and its report names what it
would make up. Takes a fraction of a second, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.model_folder import weights

MOST = 300
"""Characters of a library's message that are passed on."""


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
        found = {name: torch.empty(tensor.shape) for name, tensor in weights(folder).items()}
    kind = type(made)
    try:
        model, report = kind.from_pretrained(
            None,
            config=made.config,
            state_dict=found,
            device_map="meta",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise DataError(f"{folder}: transformers loads no {kind.__name__} of it ({one_line(error)}).") from None
    check_shapes(folder, report)
    return model, set(report["missing_keys"]), set(report["unexpected_keys"])


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

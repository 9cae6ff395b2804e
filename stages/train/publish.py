"""Writes the trained policy as a folder that loads anywhere, and measures what training changed in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from stages.train.checkpoint import sync

COPIED = ("*.json", "*.jinja", "*.txt", "*.model")
"""Tokenizer, chat template, generation config: the policy's own bytes."""
WEIGHTS = ("config.json", "*.index.json")


def gathered_state(model: nn.Module, dtype: torch.dtype, keep: bool) -> dict[str, Tensor]:
    """Gather a ZeRO-3 model tensor by tensor into CPU memory in `dtype`; every rank calls, those that keep get it."""
    import deepspeed

    state = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if keep:
                state[name] = parameter.detach().to("cpu", dtype, copy=True)
    return state


def write_model(model: Any, state: dict[str, Tensor], policy: Path, folder: Path) -> None:
    """Write weights, the policy's config with the dtype they are in, and the policy's tokenizer files."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, state_dict=state)
    for path in folder.glob("*.json"):
        if not path.name.endswith(".index.json"):
            path.unlink()
    for pattern in COPIED:
        for path in policy.glob(pattern):
            if not any(path.match(skipped) for skipped in WEIGHTS):
                shutil.copyfile(path, folder / path.name)
    config = json.loads((policy / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    sync(folder)


def changes(old: Path, new: Path) -> dict[str, float]:
    """Compare two model folders tensor by tensor, in float32: share of changed weights, max and mean |change|."""
    changed, total, largest, summed = 0, 0, 0.0, 0.0
    before = _tensors(old)
    for name, path in _tensors(new).items():
        if name in before:
            delta = (_read(path, name) - _read(before[name], name)).abs()
            changed += int(delta.count_nonzero())
            total += delta.numel()
            largest = max(largest, float(delta.max()))
            summed += float(delta.sum(dtype=torch.float64))
    return {
        "compared_parameters": total,
        "changed_fraction": changed / max(1, total),
        "max_change": largest,
        "mean_change": summed / max(1, total),
    }


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield logical name and path of the files of a published folder."""
    for path in sorted(folder.iterdir()):
        yield f"model/{path.name}", path


def _tensors(folder: Path) -> dict[str, Path]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as handle:
            found.update(dict.fromkeys(handle.keys(), path))
    return found


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as handle:
        return handle.get_tensor(name).float()

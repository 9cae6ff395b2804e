"""A ZeRO-3 checkpoint of W workers loaded by any other number of them.

ZeRO-3 deals each parameter, and each state that its optimizer keeps of it, in W equal parts, the last one padded; a
rank's file holds its parts of all parameters one after another. So parts are joined and dealt anew, one parameter at a
time, and go in where DeepSpeed loads a checkpoint of its own. Not used: DeepSpeed's universal checkpoints, which hold
the states of Adam by name and no other's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparring.stages.errors import TrainingFault

OPTIMIZER_FILES, MODEL_FILES = "**/*zero_pp_rank_*_optim_states.pt", "**/*zero_pp_rank_*_model_states.pt"
FLAT, STATE = "fp32_flat_groups", "optimizer_state_dict"


def part_of(full: Tensor, workers: int, rank: int) -> Tensor:
    """Return the part of `rank`, (ceil(n / workers),), of a parameter of n values, padded with zeros."""
    each = -(-len(full) // workers)
    part = full[rank * each : (rank + 1) * each]
    return torch.nn.functional.pad(part, (0, each - len(part)))


def workers_of(folder: Path) -> int:
    """Return how many workers wrote a checkpoint."""
    return len(list(folder.glob(OPTIMIZER_FILES)))


def load(engine: Any, folder: Path) -> None:
    """Give a fresh engine the weights and optimizer states of a checkpoint; every rank calls it."""
    saved = [_read(path)[STATE] for path in _by_rank(folder, OPTIMIZER_FILES)]
    shapes = _read(_by_rank(folder, MODEL_FILES)[0])["param_shapes"]
    layout = _Layout({name: shape.numel() for group in shapes for name, shape in group.items()}, len(saved))
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group] for group in engine.optimizer.fp16_groups]
    fresh = engine.optimizer.state_dict()
    with torch.no_grad():
        for target, group in zip(fresh[FLAT], groups, strict=True):
            layout.deal(target, group, [one[FLAT] for one in saved])
        fresh[STATE]["state"] = _states(saved, fresh[FLAT], groups, layout)
    for group, was in zip(fresh[STATE]["param_groups"], saved[0][STATE]["param_groups"], strict=True):
        group |= {name: value for name, value in was.items() if name != "params"}  # lr above all
    engine.optimizer._rigid_load_state_dict(fresh)


class _Layout:
    """Where each parameter's part lies among a saved rank's values, which are in one or more flat tensors."""

    def __init__(self, sizes: Mapping[str, int], workers: int) -> None:
        self.sizes, self.each = sizes, {name: -(-size // workers) for name, size in sizes.items()}
        self.begins = dict(zip(sizes, accumulate(self.each.values(), initial=0), strict=False))

    def deal(self, target: Tensor, names: Sequence[str], saved: Sequence[Sequence[Tensor]]) -> None:
        """Fill this rank's flat tensor of some parameters; saved: the flat tensors of each saved rank."""
        at = 0
        for name in names:
            parts = [cut(flats, self.begins[name], self.each[name]) for flats in saved]
            full = torch.cat(parts)[: self.sizes[name]]
            part = part_of(full, dist.get_world_size(), dist.get_rank())
            target[at : at + len(part)] = part
            at += len(part)


def cut(flats: Sequence[Tensor], begin: int, length: int) -> Tensor:
    """Return `length` values from `begin` on of flat tensors one after another; no parameter lies in two of them."""
    for flat in flats:
        if begin < len(flat):
            return flat[begin : begin + length]
        begin -= len(flat)
    raise IndexError(begin)


def _states(
    saved: list[dict[str, Any]], fresh: Sequence[Tensor], groups: Sequence[Sequence[str]], layout: _Layout
) -> dict[int, dict[str, Any]]:
    """Return the optimizer's states by group; one number, such as a step, is the same for all."""
    states: dict[int, dict[str, Any]] = {group: {} for group in range(len(groups))}
    for name, first in saved[0][STATE]["state"][0].items():
        flats = [[one[STATE]["state"][i][name] for i in sorted(one[STATE]["state"])] for one in saved]
        sized = torch.is_tensor(first) and first.dim()
        if isinstance(first, dict) or (sized and len(first) != len(saved[0][FLAT][0])):  # 8-bit Adam keeps a dict
            raise TrainingFault(
                f"the checkpoint was written by {len(saved)} workers, and the optimizer's {name} cannot be dealt to "
                f"another number; set hardware.workers={len(saved)} again, or run with another optimizer."
            )
        for group, names in enumerate(groups):
            states[group][name] = copy.deepcopy(first)  # a tensor that groups share would count every step twice
            if sized:
                states[group][name] = torch.zeros_like(fresh[group], dtype=first.dtype)
                layout.deal(states[group][name], names, flats)
    return states


def _by_rank(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern), key=lambda path: int(path.name.partition("zero_pp_rank_")[2].partition("_")[0]))


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False, mmap=True)

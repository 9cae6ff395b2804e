"""Where packages come from: what pip on this machine is told, said to uv in its environment.

uv reads none of pip's settings, so a machine with its own index, wheels or certificate would look different
to the two. Nothing here is written to a file: the locks and the repository name no index.
"""

import ast
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def pip_settings(python: Path) -> dict[str, str]:
    """pip's settings by plain name, as `find-links`."""
    listing = subprocess.run(
        [python, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        check=True,
        env=install_environment(),
    )
    return parse_settings(listing.stdout)


def parse_settings(listing: str) -> dict[str, str]:
    """Settings out of lines `section.name='value'`, as pip lists them; of the sections the last one wins."""
    settings: dict[str, str] = {}
    lines = [line.split("=", 1) for line in listing.splitlines() if "=" in line]
    for section in ("global", "install", ":env:"):
        for key, value in lines:
            if key.startswith(f"{section}."):
                settings[key.removeprefix(f"{section}.")] = ast.literal_eval(value)
    return settings


def reachable(url: str, seconds: float = 3.0) -> bool:
    """Whether anything at all answers there within the time, by way of a proxy if one is set."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False


def install_environment() -> dict[str, str]:
    """This process's environment, less what would keep an installer from compiling bytecode."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def uv_environment(settings: Mapping[str, str], extra: list[str]) -> dict[str, str]:
    """The environment that makes uv look where pip looks and at `extra`; what the user set for uv wins."""
    said = {
        "UV_DEFAULT_INDEX": settings.get("index-url", ""),
        "UV_INDEX": " ".join([*settings.get("extra-index-url", "").split(), *extra]),
        "UV_FIND_LINKS": ",".join(settings.get("find-links", "").split()),
        "SSL_CERT_FILE": settings.get("cert", ""),
        # As pip does: the best version of all indexes, not that of the first one which knows the name.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_HTTP_TIMEOUT": settings.get("default-timeout", settings.get("timeout", "")),
    }
    return {key: value for key, value in said.items() if value} | install_environment()


def torch_index(hardware: str) -> list[str]:
    """PyTorch's index of CPU builds, if that is needed and answers; the general one has CUDA builds alone."""
    if hardware != "cpu":
        return []
    if reachable(f"{TORCH_CPU_INDEX}/torch/"):
        return [TORCH_CPU_INDEX]
    print(f"{TORCH_CPU_INDEX} does not answer: going on with the indexes that pip is set to", file=sys.stderr)
    return []

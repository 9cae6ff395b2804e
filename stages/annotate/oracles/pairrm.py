"""The oracle `pairrm`: PairRM (arXiv 2306.02561), the judge of the SPPO paper; the model is ../pairrm.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from sparring.stages.annotate.oracle import Oracle
from sparring.stages.annotate.oracles import OracleContext, OracleOptions


@dataclass(frozen=True, kw_only=True)
class Options(OracleOptions):
    """How a checkpoint is read."""

    needs_transformers_to_check: ClassVar[bool] = True

    dtype: Literal["auto", "float32", "bfloat16"]
    """Of the encoder; the head is in float32. auto: bfloat16 on GPUs, float32 on CPUs."""

    @staticmethod
    def on(gpus: int, values: Mapping[str, Any]) -> dict[str, Any]:
        dtype = "bfloat16" if gpus else "float32"
        return {**values, "dtype": dtype} if values.get("dtype") == "auto" else dict(values)

    def check_folder(self, folder: Path) -> None:
        from sparring.stages.annotate.pairrm import read_layout

        read_layout(folder)


def load(options: Options, context: OracleContext) -> Oracle:
    """Load a checkpoint's folder, of either published layout."""
    from sparring.stages.annotate.pairrm import PairRM

    dtype = Options.on(context.gpus, {"dtype": options.dtype})["dtype"]
    return PairRM(context.folders["judge"], dtype, context.device)

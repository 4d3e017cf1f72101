"""Where something was measured: the device, and the versions of what computed there."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_PACKAGES = ("transformers", "flash-attn")


def machine(device: torch.device) -> dict[str, Any]:
    """Name of the device, cores, and versions: of torch with its build, of packages that are installed; with a GPU, of
    CUDA that torch was built with, and of the driver."""
    found: dict[str, str] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    if device.type == "cuda":
        found["driver"] = _driver()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": name, "cores": len(os.sched_getaffinity(0)), "versions": found}


def _driver() -> str:
    """The version of NVIDIA's driver, which torch does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):
        told = []
    return told[0] if told else "unknown: nvidia-smi does not tell"


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()

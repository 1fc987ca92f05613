"""manifest.json: what made a run, so that somebody else can make it again."""

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
from pathlib import Path

from ..training.checkpoint import write_json

PACKAGES = ("nnce-dist", "torch", "ray", "webdataset", "s3fs", "omegaconf", "numpy")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(*words: str) -> str:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def hardware() -> str:
    """One line about this machine."""
    import torch

    gpus = (
        f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    )
    return f"{os.cpu_count()} cores {processor()}{gpus}"


def _made_by(command: list[str]) -> dict:
    commit = _git("rev-parse", "HEAD") + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    return {
        "command": shlex.join(["python", *command]),
        "versions": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "git_commit": commit or None,
        "hardware": hardware(),
    }


def write_manifest(root: Path, command: list[str], drift: list[str]) -> None:
    """Writes the manifest of a run; a continued run keeps its first one and adds the settings that have drifted."""
    path = root / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else _made_by(command)
    known = manifest.get("drift", [])
    write_json(path, manifest | {"drift": known + [line for line in drift if line not in known]})

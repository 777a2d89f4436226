"""The first run of a stranger's tokenizer: in a process of its own, where an abort, endless work or gigabytes cost nothing."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys

from ..engine.tokenizer_json import TokenizerError

_SECONDS, _BYTES = 20, 4 << 30
_ENDED_BY_LIMITS = [getattr(signal, name) for name in ("SIGXCPU", "SIGKILL") if hasattr(signal, name)]
_SCRIPT = f"""
import sys
try:
    import resource
except ImportError:  # Windows: the parent's clock is the only limit
    limits = ()
else:
    limits = ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, {_SECONDS}), (resource.RLIMIT_AS, {_BYTES}))
for limit, value in limits:
    try:
        resource.setrlimit(limit, (value, value))
    except (ValueError, OSError):
        pass
from tokenizers import Tokenizer
try:
    tokenizer = Tokenizer.from_str(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"))
    for text in ("", "a", " Hello, world\\n\\t 123 \\u00e9\\u65e5\\U0001f600 " * 20, "<s>x</s>" * 4, "a" * 2000):
        for special in (False, True):
            ids = tokenizer.encode(text, add_special_tokens=special).ids
        tokenizer.decode(ids[:1000])
except BaseException as error:
    print(str(error)[:500])
    sys.exit(3)
"""


@functools.lru_cache(maxsize=16)
def _verdict(serialized: str) -> str:
    """Why the tokenizer cannot be used; empty where it can."""
    if not sys.executable:  # Python inside another program: there is none to start
        return ""
    paths = [path for path in sys.path if os.path.isabs(path)]
    try:
        text = serialized.encode("utf-8", "surrogatepass")
        # in "/": an import must not find a module that stands beside the model
        done = subprocess.run(
            [sys.executable, "-c", f"import sys\nsys.path[:] = {paths!r}\n{_SCRIPT}"],
            input=text,
            capture_output=True,
            timeout=4 * _SECONDS,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        return f"a few words took it more than {4 * _SECONDS} s"
    if done.returncode == 3:
        return done.stdout.decode("utf-8", "replace").strip() or "it failed"
    if -done.returncode in _ENDED_BY_LIMITS:
        return f"a few words took it more than {_SECONDS} s of computing"
    if done.returncode:
        return f"it brought its process down (status {done.returncode}): {done.stderr.decode('utf-8', 'replace').strip()[:200]}"
    return ""


def try_out(serialized: str) -> None:
    """Loads a tokenizer and runs it on a few texts elsewhere; TokenizerError where that goes wrong. Remembers what it has tried."""
    if problem := _verdict(serialized):
        raise TokenizerError(problem)

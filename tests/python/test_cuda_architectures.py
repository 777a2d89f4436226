"""Architectures on a CUDA device against transformers; skipped where there is none. Heads are multiples of 8, as the kernels want them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from architecture_cases import CASES, N_PROMPT, N_TOKENS, Case, References, convert
from turboquant_native import _core

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(not _core.backends()["cuda"].startswith("available"), reason="needs a CUDA device")

_WIDE = {"hidden_size": 64}  # four heads of 16
_NAMES = {
    "smollm3": _WIDE, "smollm3-window-yarn": _WIDE, "olmo3": _WIDE, "ministral3": {}, "gpt_oss": {}, "gemma4": {}, "gemma4-e": {},
    "gemma4-moe": {}, "gemma4-moe-e-wide": {},
}  # fmt: skip
CUDA_CASES = [replace(case, name=f"cuda-{case.name}", config=case.config | _NAMES[case.name]) for case in CASES if case.name in _NAMES]
EACH = pytest.mark.parametrize("case", CUDA_CASES, ids=lambda case: case.name)
TOLERANCE = 3e-4  # of logits of order 1: float32 throughout, in another order than transformers adds


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory)


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.isfinite(ours).all() and np.abs(ours - theirs).max() <= TOLERANCE


@EACH
def test_float_path(case: Case, references: References, tmp_path: Path) -> None:
    """A prompt, token by token past any window, a batch of three sequences with more rows than decoding has, a state taken elsewhere."""
    reference = references.of(case)
    model = _core.Model(str(convert(reference.folder, tmp_path / "out.gguf", outtype="f32")), precision="f32", device="cuda")
    ctx = _core.Context(model, n_ctx=128, n_slots=3)
    assert_close(ctx.eval(reference.tokens[:N_PROMPT], 0, logits="all"), reference.logits[:N_PROMPT])
    for position in range(N_PROMPT, N_TOKENS):
        assert_close(ctx.eval(reference.tokens[position : position + 1], position), reference.logits[position])
    ctx.eval(reference.tokens[:13], 0, 1)
    rows = [(0, p) for p in range(N_TOKENS)] + [(1, p) for p in range(13, 20)] + [(2, p) for p in range(9)]
    slots, positions = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    logits = ctx.forward(reference.tokens[positions], positions, slots, np.arange(len(rows), dtype=np.int32))
    assert_close(logits, reference.logits[positions])
    other = _core.Context(model, n_ctx=64)
    other.load(0, ctx.save(0, N_PROMPT))
    assert_close(other.eval(reference.tokens[N_PROMPT:], N_PROMPT, logits="all"), reference.logits[N_PROMPT:])


@EACH
def test_8_bits(case: Case, references: References, tmp_path: Path) -> None:
    """As near to the original as the CPU comes: with inputs in int8, prompts (40 rows) and decoding."""
    reference = references.of(case)
    model = _core.Model(str(convert(reference.folder, tmp_path / "out.gguf", bits=8)), device="cuda")
    p = torch.log_softmax(torch.from_numpy(reference.logits), -1)
    ctx = _core.Context(model, n_ctx=64)
    whole = ctx.eval(reference.tokens, 0, logits="all")
    single = np.stack([ctx.eval(reference.tokens[i : i + 1], i) for i in range(N_TOKENS)])
    for logits in (whole, single):
        q = torch.log_softmax(torch.from_numpy(logits), -1)
        loss = float((p.exp() * (p - q)).sum(-1).mean())
        assert -1e-6 < loss < 0.01


@pytest.mark.parametrize("name", ["llama-gqa"])  # heads of 12
def test_what_does_not_run_is_named(name: str, references: References, tmp_path: Path) -> None:
    reference = references.of(next(case for case in CASES if case.name == name))
    model = _core.Model(str(convert(reference.folder, tmp_path / "out.gguf", outtype="f16")), device="cuda")
    with pytest.raises(_core.UnsupportedError, match="device cuda: "):
        _core.Context(model, n_ctx=64)

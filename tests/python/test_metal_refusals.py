"""What a Mac's owner is told when Metal cannot serve, and that the CPU then does. The emulator (tests/metal) acts what goes wrong."""

import os
from pathlib import Path

import numpy as np
import pytest

from turboquant_native import Llama, _core
from turboquant_native.commands import doctor

LIBRARY = os.environ.get("TQ_TEST_METAL_EMULATOR", "")
pytestmark = pytest.mark.skipif(not LIBRARY, reason="TQ_TEST_METAL_EMULATOR does not name an emulator")
REASONS = {
    "old-system": "macOS 13 or later is needed",
    "old-gpu": "is older than Apple's M1 (family Apple7), which is needed",
    "library": "the kernels do not compile on",
}
TOKENS = np.array([3, 5, 7], np.int32)


@pytest.fixture(autouse=True)
def emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQ_METAL_EMULATOR", LIBRARY)


def assert_the_cpu_works(path: Path) -> None:
    assert np.isfinite(_core.Context(_core.Model(str(path)), n_ctx=16).eval(TOKENS, 0)).all()


@pytest.mark.parametrize("fault", REASONS)
def test_without_a_device_that_can_serve_the_cpu_does(
    fault: str, tiny_tqn: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TQ_METAL_EMULATOR_FAULT", fault)
    assert doctor.examine()["backends"]["metal"].startswith("unsupported: ") and REASONS[fault] in doctor.examine()["backends"]["metal"]
    with pytest.raises(_core.UnsupportedError, match="device metal: unsupported: ") as refused:
        _core.Model(str(tiny_tqn), device="metal")
    assert REASONS[fault] in str(refused.value)
    with Llama(str(tiny_tqn), n_ctx=16, n_gpu_layers=-1, logits_all=True) as llm:
        llm.eval([3, 5, 7])
        assert llm.scores.shape[0] >= 3 and np.isfinite(llm.scores[:3]).all() and llm.scores[:3].any(axis=1).all()
        assert llm.engine.core.backend.startswith("cpu")
    assert REASONS[fault] in caplog.text


def test_a_kernel_that_does_not_compile_is_named(tiny_tqn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQ_METAL_EMULATOR_FAULT", "pipeline=store_keys_f16")
    ctx = _core.Context(_core.Model(str(tiny_tqn), device="metal"), n_ctx=16)
    for _ in range(2):
        with pytest.raises(_core.UnsupportedError, match="device metal: store_keys_f16 does not compile on "):
            ctx.eval(TOKENS, 0)
    assert_the_cpu_works(tiny_tqn)


def test_out_of_memory_says_how_much_was_asked_for(tiny_tqn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQ_METAL_EMULATOR_FAULT", "memory=100000")
    model = _core.Model(str(tiny_tqn), device="metal")
    with pytest.raises(MemoryError, match=r"device metal: cannot allocate \d{6,} bytes on "):
        _core.Context(model, n_ctx=256, n_slots=64)
    assert np.isfinite(_core.Context(model, n_ctx=16, n_batch=4).eval(TOKENS, 0)).all()  # a smaller one fits
    assert_the_cpu_works(tiny_tqn)


@pytest.mark.parametrize(("n_gpu_layers", "expected"), [(-1, ("metal (",)), (1, ("cpu (", "metal ("))])
def test_llama_takes_metal_for_the_layers_it_is_given(n_gpu_layers: int, expected: tuple[str, ...], tiny_tqn: Path) -> None:
    with Llama(str(tiny_tqn), n_ctx=32, n_gpu_layers=n_gpu_layers, seed=1) as llm, Llama(str(tiny_tqn), n_ctx=32) as cpu:
        backend = llm.engine.core.backend
        assert all(name in backend for name in expected) and ("cpu (" in backend) == ("cpu (" in expected)
        assert (
            llm("The", max_tokens=4, temperature=0)["choices"][0]["text"] == cpu("The", max_tokens=4, temperature=0)["choices"][0]["text"]
        )


def test_embeddings_equal_the_cpu(tiny_tqn: Path) -> None:
    vectors = []
    for layers in (0, -1):
        with Llama(str(tiny_tqn), n_ctx=32, n_gpu_layers=layers, embedding=True) as llm:
            vectors.append(np.array(llm.embed("The quick brown fox"), np.float64))
    assert vectors[0].shape == vectors[1].shape and np.isfinite(vectors[1]).all()
    assert np.linalg.norm(vectors[0] - vectors[1]) <= 0.02 * np.linalg.norm(vectors[0])  # int8 inputs: a few rounded the other way

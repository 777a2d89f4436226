"""Whole models through the Metal backend's own program, placement and cache code, its kernels carried out on the CPU (tests/metal).

`make test` builds the emulator and names it in TQ_TEST_METAL_EMULATOR; on a Mac the GPU itself carries them out.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import architecture_cases as architectures
from architecture_cases import N_PROMPT, N_TOKENS, ONE_EACH, Case, Reference, References, assert_close, assert_three_sequences, convert
from turboquant_native import _core

LIBRARY = os.environ.get("TQ_TEST_METAL_EMULATOR", "")
ON_DEVICE = not LIBRARY and _core.backends()["metal"].startswith("available")
pytestmark = pytest.mark.skipif(not LIBRARY and not ON_DEVICE, reason="TQ_TEST_METAL_EMULATOR does not name an emulator")

NAMES = ["llama-gqa", "qwen3", "gemma3", "qwen2_moe", "gpt_oss", "qwen3_5", "qwen3_next"]


@pytest.fixture(autouse=True)
def emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    if LIBRARY:
        monkeypatch.setenv("TQ_METAL_EMULATOR", LIBRARY)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory)


def named(name: str) -> Case:
    return next(case for case in architectures.CASES if case.name == name)


def context(path: Path, device: str, precision: str = "f32", n_slots: int = 1, cache: str = "auto", n_ctx: int = N_TOKENS) -> Any:
    model = _core.Model(str(path), threads=1, precision=precision, device=device)
    return _core.Context(model, n_ctx=n_ctx, n_slots=n_slots, cache=cache)


def typical(rows: np.ndarray) -> float:
    """The median over rows of a row's root mean square."""
    return float(np.median(np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=1))))


def logits_of(ctx: Any, reference: Reference, n_prompt: int = N_PROMPT, n_tokens: int = N_TOKENS) -> np.ndarray:
    """A prompt at once, then token by token."""
    prompt = ctx.eval(reference.tokens[:n_prompt], 0, logits="all")
    return np.concatenate([prompt, *(ctx.eval(reference.tokens[i : i + 1], i)[None] for i in range(n_prompt, n_tokens))])


@ONE_EACH
def test_logits_equal_transformers(case: Case, references: References, tmp_path: Path) -> None:
    reference = references.of(case)
    path = convert(reference.folder, tmp_path / "out.gguf", outtype="f32")
    assert_close(logits_of(context(path, "metal"), reference, n_tokens=N_PROMPT + 6), reference.logits[: N_PROMPT + 6])


@ONE_EACH
def test_packed_weights_and_int8_inputs_equal_the_cpu(case: Case, references: References, tmp_path: Path) -> None:
    """Both round each input to 1/127 of the largest, and have the same integers behind it.

    Where a value's last bits decide between two steps, or between two experts, they may choose otherwise, and what follows differs as two
    roundings of a model do. In short prompts that is rare; long ones attend in half precision, so that many values do. No way is typically
    further from the float path than the CPU's.
    """
    reference = references.of(case)
    bits = (1, 2, 3, 4, 6, 8)[len(case.name) % 6]
    path = convert(reference.folder, tmp_path / "out.gguf", bits=bits)
    plain, cpu = (logits_of(context(path, "cpu", precision), reference, 12, 20) for precision in ("f32", "int8"))
    rounding = typical(cpu - plain)
    for n_prompt, allowed in ((12, 0.6), (20, 1.5)):
        metal = logits_of(context(path, "metal", "int8"), reference, n_prompt, 20)
        assert np.isfinite(metal).all() and np.abs(metal[0] - cpu[0]).max() <= 1e-5 * np.abs(cpu[0]).max()
        assert typical(metal - cpu) <= allowed * rounding and typical(metal - plain) <= 1.25 * rounding


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_several_sequences(name: str, references: References, tmp_path: Path) -> None:
    reference = references.of(named(name))
    ctx = context(convert(reference.folder, tmp_path / "out.gguf", outtype="f32"), "metal", n_slots=3)
    assert_three_sequences(ctx, reference)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_equal_the_cpu(name: str, references: References, tmp_path: Path) -> None:
    """Chosen on the device, 128 of them, from a packed model with float inputs."""
    reference = references.of(named(name))
    path = convert(reference.folder, tmp_path / "out.gguf", bits=4)
    chosen = []
    for device in ("cpu", "metal"):
        ctx = context(path, device, n_ctx=136)
        best, tokens = ctx.eval_best(reference.tokens[:5], 0), []
        for i in range(128):
            tokens.append(int(best[0]["token"]))
            best = ctx.eval_best(np.array(tokens[-1:], np.int32), 5 + i)
        chosen.append(tokens)
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("name", NAMES)
def test_saved_states_go_on_here_and_elsewhere(name: str, references: References, tmp_path: Path) -> None:
    reference = references.of(named(name))
    path = convert(reference.folder, tmp_path / "out.gguf", outtype="f32")
    cpu, metal, other = (context(path, device) for device in ("cpu", "metal", "metal"))
    metal.eval(reference.tokens[:N_PROMPT], 0)
    for second in (other, cpu):
        second.load(0, metal.save(0, N_PROMPT))
        assert_close(second.eval(reference.tokens[N_PROMPT:], N_PROMPT, logits="all"), reference.logits[N_PROMPT:])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cache", ["k8v8", "k4v4"])
def test_caches_in_codes_equal_the_cpu(cache: str, name: str, references: References, tmp_path: Path) -> None:
    """The same codes but where a value's last bits decide, and whatever way the tokens were cut into batches: less than the codes cost."""
    reference = references.of(named(name))
    path = convert(reference.folder, tmp_path / "out.gguf", outtype="f32")
    cpu = logits_of(context(path, "cpu", cache=cache), reference)
    whole, pieces = (logits_of(context(path, "metal", cache=cache), reference, n_prompt) for n_prompt in (N_PROMPT, 7))
    cost = typical(cpu - reference.logits)
    for metal in (whole, pieces):
        assert np.isfinite(metal).all() and typical(metal - cpu) <= 0.3 * cost
    assert typical(whole - pieces) <= 0.3 * cost


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next"])
def test_recurrent_layers_go_back_to_a_snapshot(name: str, references: References, tmp_path: Path) -> None:
    """To the bit, whatever was in the slot since; and a slot that begins again has forgotten everything."""
    reference = references.of(named(name))
    ctx = context(convert(reference.folder, tmp_path / "out.gguf", bits=4), "metal", n_slots=2)
    ctx.eval(reference.tokens[:9], 0)
    kept = ctx.snapshot(0)
    expected = ctx.eval(reference.tokens[9:14], 9)
    assert np.isfinite(expected).all()
    for slot in (0, 1):
        ctx.restore(slot, kept)
        np.testing.assert_array_equal(ctx.eval(reference.tokens[9:14], 9, slot), expected)
    ctx.eval(reference.tokens[:9], 0)
    np.testing.assert_array_equal(ctx.eval(reference.tokens[9:14], 9), expected)


def test_layers_are_split_between_devices(references: References, tmp_path: Path) -> None:
    reference = references.of(named("llama-gqa"))
    path = convert(reference.folder, tmp_path / "out.gguf", outtype="f32")
    for device in ("cpu*1,metal*1", "metal*1,cpu*1"):
        assert_close(logits_of(context(path, device), reference, n_tokens=N_PROMPT + 2), reference.logits[: N_PROMPT + 2])


def test_what_is_not_there_is_refused_by_name(references: References, tmp_path: Path) -> None:
    path = convert(references.of(named("llama-gqa")).folder, tmp_path / "out.gguf", bits=4)
    model = _core.Model(str(path), device="metal")
    assert model.backend.startswith("metal (") and _core.backends()["metal"].startswith("available: ")
    with pytest.raises(_core.UnsupportedError, match="no device 99"):
        _core.Model(str(path), device="metal:99")


def test_a_forked_process_is_told_to_open_the_model_again(references: References, tmp_path: Path) -> None:
    reference = references.of(named("llama-gqa"))
    ctx = context(convert(reference.folder, tmp_path / "out.gguf", bits=4), "metal")
    child = os.fork()
    if child == 0:
        try:
            ctx.eval(reference.tokens[:2], 0)
        except RuntimeError as error:
            os._exit(0 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.isfinite(ctx.eval(reference.tokens[:2], 0)).all()


@pytest.mark.skipif(ON_DEVICE, reason="a Mac")
def test_without_a_device_the_reason_is_given(references: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = convert(references.of(named("llama-gqa")).folder, tmp_path / "out.gguf", bits=4)
    monkeypatch.setenv("TQ_METAL_EMULATOR", str(tmp_path / "none.so"))
    assert "none.so" in _core.backends()["metal"]
    monkeypatch.delenv("TQ_METAL_EMULATOR")
    with pytest.raises(_core.UnsupportedError, match="device metal: unsupported: Metal is Apple's"):
        _core.Model(str(path), device="metal")
    assert _core.Context(_core.Model(str(path)), n_ctx=32).eval(np.array([3], np.int32), 0).shape == (96,)

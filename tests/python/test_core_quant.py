"""The encoder through its bindings: arrays in, arrays out, errors, interruption. Its arithmetic is tested in tests/cpp."""

import signal
import threading

import numpy as np
import pytest

from turboquant_native import _core

BITS = [1, 2, 3, 4, 6, 8]


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def correlated_hessian(n: int) -> np.ndarray:
    x = gaussian(4 * n, n) @ gaussian(n, n, seed=1) * np.logspace(0, -1, n)
    return (x.T @ x / len(x)).astype(np.float64)


@pytest.mark.parametrize("bits", BITS)
def test_encode_and_decode_agree_with_the_oracle(bits: int) -> None:
    w = gaussian(70, 36)
    packed = _core.encode(w, bits)
    sizes = _core.plane_bytes(70, 36, bits)
    assert (packed.codes.nbytes, packed.row_scale.nbytes, packed.codebook.nbytes) == tuple(sizes.values())
    assert (packed.bits, packed.n_out, packed.n_in) == (bits, 70, 36)
    values = _core.reference_decode(packed.codes, bits, 70, 36, packed.codebook)
    wanted = packed.scale * packed.row_scale[:70, None].astype(np.float32) * values
    np.testing.assert_allclose(_core.decode(packed), wanted, rtol=1e-6)
    assert packed.squared_error == pytest.approx(np.sum(np.square(w - wanted, dtype=np.float64)), rel=1e-4)


def test_planes_are_read_only_views_that_keep_the_result_alive() -> None:
    codes = _core.encode(gaussian(64, 8), 2).codes
    assert not codes.flags.writeable
    assert codes.base is not None and codes.size == 128


def test_own_codebook_and_scales_are_used() -> None:
    w, unit = gaussian(64, 8), np.full(64, 1 / 32, np.float32)
    codebook = np.arange(-63, 64, 2, dtype=np.int8)
    packed = _core.encode(w, 6, codebook=codebook, unit_scale=unit)
    np.testing.assert_array_equal(packed.codebook, codebook)
    assert packed.scale == 1 / 32 and np.all(packed.row_scale == 1)
    assert np.all(np.abs(w - _core.decode(packed)) <= 1 / 32 + np.maximum(np.abs(w) - 63 / 32, 0))


def test_rotation_is_undone_by_its_inverse() -> None:
    w = gaussian(5, 36)
    rotated = _core.rotate_rows(w, 2**64 - 1)
    assert np.abs(rotated - w).max() > 0.1
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=1), np.linalg.norm(w, axis=1), rtol=1e-5)
    np.testing.assert_allclose(_core.rotate_rows(rotated, 2**64 - 1, inverse=True), w, atol=1e-5)


def test_feedback_is_the_block_factor_of_the_hessian_and_lowers_the_loss() -> None:
    n, h = 32, correlated_hessian(32)
    u = _core.feedback(h, 0.01)
    damped = h + 0.01 * np.trace(h) / n * np.eye(n)
    inverse = np.linalg.inv(np.eye(n) + u.astype(np.float64))
    d = inverse @ damped @ inverse.T
    blocks = np.kron(np.eye(n // 4), np.ones((4, 4)))
    assert np.abs(d * (1 - blocks)).max() < 1e-4 * np.abs(d).max()
    assert not u[np.tril(np.ones((n, n), bool)) | (blocks > 0)].any()
    w = gaussian(64, n, seed=3)

    def loss(packed: _core.Packed) -> float:
        error = (w - _core.decode(packed)).astype(np.float64)
        return float(np.sum((error @ h) * error))

    assert loss(_core.encode(w, 2, feedback=u)) < 0.8 * loss(_core.encode(w, 2))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: _core.encode(np.full((4, 4), np.nan, np.float32), 2), ValueError, r"w\[0, 0\] is nan"),
        (lambda: _core.encode(np.zeros(4, np.float32), 2), ValueError, "w has 1 dimensions"),
        (lambda: _core.encode(np.zeros((4, 6), np.float32), 2), ValueError, "no TQN matrix of 4 x 6"),
        (lambda: _core.encode(np.zeros((4, 4), np.float32), 5), ValueError, "at 5 bits"),
        (lambda: _core.encode(np.zeros((4, 4)), 2), TypeError, "incompatible function arguments"),
        (lambda: _core.encode(np.zeros((4, 8), np.float32)[:, ::2], 2), TypeError, "incompatible function arguments"),
        (lambda: _core.encode(np.zeros((4, 4), np.float32), 2, feedback=np.zeros((4, 3), np.float32)), ValueError, "feedback has 12"),
        (lambda: _core.feedback(np.zeros((4, 3)), 0.01), ValueError, "hessian has 12 elements"),
        (lambda: _core.feedback(np.full((4, 4), np.inf), 0.01), ValueError, r"hessian\[0, 0\] is inf"),
        (lambda: _core.rotate_rows(np.zeros((2, 6), np.float32), 1), ValueError, "width 6"),
        (lambda: _core.plane_bytes(64, 7, 2), ValueError, "no TQN matrix of 64 x 7"),
        (lambda: _core.default_codebook(7), ValueError, "at 7 bits"),
        (lambda: _core.reference_decode(np.zeros(1, np.uint8), 2, 64, 4, _core.default_codebook(2)[0]), ValueError, "codes has 1 bytes"),
    ],
)
def test_bad_arguments_are_named(call, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_an_exception_of_the_callback_stops_the_work() -> None:
    def stop(_: int) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        _core.encode(gaussian(256, 64), 2, progress=stop)


def test_a_signal_stops_the_work() -> None:
    w = gaussian(4096, 1024)  # minutes of one core at the reference's speed, seconds at any
    timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        while True:  # a machine may be quicker than the timer
            _core.encode(w, 1)
    timer.join()


def test_the_encoder_of_a_device_is_named_or_refused():
    w = gaussian(64, 8)
    with pytest.raises(ValueError, match='device is "tpu"'):
        _core.encode(w, 2, device="tpu")
    if _core.backends()["cuda"].startswith("unsupported"):
        with pytest.raises(_core.UnsupportedError, match="device cuda"):
            _core.encode(w, 2, device="cuda")
    else:
        assert _core.encode(w, 2, device="cuda").squared_error < 1.02 * _core.encode(w, 2).squared_error

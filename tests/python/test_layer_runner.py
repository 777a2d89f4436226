"""The layer runner, through which calibration walks: layers one by one, what linear layers read, passes that stop, matrices replaced."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_engine import CONFIG, random_tokens
from turboquant_native._core import Context, LayerRunner, Model


def test_layers_one_by_one_give_the_logits(model: Model) -> None:
    tokens = random_tokens(6 * 16).reshape(6, 16)
    runner = LayerRunner(model, 16)
    hidden = runner.embed(tokens)
    for layer in range(CONFIG["num_hidden_layers"]):
        hidden = runner.layer(layer, hidden)
    for window, states in zip(tokens, hidden, strict=True):
        expected = Context(model).eval(window, 0, logits="all")
        np.testing.assert_allclose(runner.head(states), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_taps_see_the_inputs_of_linear_layers(f32_path: Path) -> None:
    model = Model(str(f32_path), precision="f32")
    runner, seen = LayerRunner(model, 16), {}

    def tap(site: str, x: Any) -> None:
        seen.setdefault(site, []).append(x.copy())

    hidden = runner.embed(random_tokens(48).reshape(3, 16))
    out = runner.layer(0, hidden, tap)
    np.testing.assert_allclose(out, runner.layer(0, hidden), rtol=0, atol=1e-5 * np.abs(out).max())
    inputs = {site: np.concatenate(rows) for site, rows in seen.items()}
    assert {site: x.shape for site, x in inputs.items()} == {
        "blk.0.attn_q": (48, 48),
        "blk.0.attn_output": (48, 48),
        "blk.0.ffn_gate": (48, 48),
        "blk.0.ffn_down": (48, 80),
        "blk.0.attn_q/residual": (48, 48),
        "blk.0.ffn_gate/residual": (48, 48),
    }
    x = hidden.reshape(48, 48)
    normed = x / np.sqrt((x**2).mean(1, keepdims=True) + CONFIG["rms_norm_eps"]) * model.file.data("blk.0.attn_norm.weight")
    np.testing.assert_allclose(inputs["blk.0.attn_q"], normed, rtol=1e-4, atol=1e-5)
    up = inputs["blk.0.ffn_gate"] @ model.file.data("blk.0.ffn_up.weight").T
    gate = inputs["blk.0.ffn_gate"] @ model.file.data("blk.0.ffn_gate.weight").T
    np.testing.assert_allclose(inputs["blk.0.ffn_down"], gate / (1 + np.exp(-gate)) * up, rtol=1e-3, atol=1e-4)
    with pytest.raises(ZeroDivisionError):
        runner.layer(0, hidden, lambda site, x: 1 / 0)


@pytest.mark.parametrize("seq_len", [16, 512])  # many windows in a pass, and one
def test_a_pass_goes_on_where_a_tap_stopped_it(f32_path: Path, seq_len: int) -> None:
    model = Model(str(f32_path), precision="f32")
    runner = LayerRunner(model, seq_len)
    hidden = runner.embed(random_tokens(96 * 16).reshape(-1, seq_len))
    zero = np.zeros((48, 80), np.float32)
    seen: list[str] = []

    def stop_at(wanted: str):
        def tap(site: str, x: Any) -> bool:
            seen.append(site)
            return site == wanted

        return tap

    whole = runner.layer(1, hidden)
    halfway = runner.enter(1, hidden)
    for site in ("blk.1.attn_q", "blk.1.attn_output", "blk.1.ffn_gate", "blk.1.ffn_down"):
        halfway.run(stop_at(site))
    assert set(seen[-3:]) == {"blk.1.ffn_gate/residual", "blk.1.ffn_gate", "blk.1.ffn_down"}
    before = halfway.hidden
    runner.set_matrix("blk.1.ffn_down.weight", zero)
    halfway.run()
    np.testing.assert_array_equal(halfway.hidden, before)  # the new matrix adds nothing to the residual stream
    runner.set_matrix("blk.1.ffn_down.weight", None)
    halfway.run()
    np.testing.assert_array_equal(halfway.hidden, before)  # at its end a pass stays where it is

    again = runner.enter(1, hidden)
    for site in ("blk.1.attn_output", "blk.1.ffn_down"):
        again.run(stop_at(site))
    again.run()
    np.testing.assert_allclose(again.hidden, whole, rtol=0, atol=1e-5 * np.abs(whole).max())
    with pytest.raises(ValueError, match="layer 9"):
        runner.enter(9, hidden)


def test_matrices_can_be_replaced_and_put_back(model: Model) -> None:
    runner = LayerRunner(model, 8)
    hidden = runner.embed(random_tokens(8)[None])
    before = runner.layer(1, hidden)
    for name in ("blk.1.attn_output.weight", "blk.1.ffn_down.weight"):
        runner.set_matrix(name, np.zeros(model.file.dequantize(name).shape, np.float32))
    np.testing.assert_array_equal(runner.layer(1, hidden), hidden)  # both branches add nothing
    for name in ("blk.1.attn_output.weight", "blk.1.ffn_down.weight"):
        runner.set_matrix(name, None)
    np.testing.assert_array_equal(runner.layer(1, hidden), before)
    with pytest.raises(ValueError, match="no matrix"):
        runner.set_matrix("blk.9.ffn_down.weight", None)
    with pytest.raises(ValueError, match="expected \\(48, 80\\)"):
        runner.set_matrix("blk.1.ffn_down.weight", np.zeros((48, 79), np.float32))

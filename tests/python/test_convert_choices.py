"""What `tqn convert` makes of its options: calibrated by default, nothing dropped silently, a summary in plain words."""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from test_convert import convert, fails, leftovers
from tiny_models import LLAMA, llama_tensors, save_llama, write_gguf
from turboquant_native import _core
from turboquant_native.calibrate import request as requests
from turboquant_native.calibrate.report import in_words
from turboquant_native.calibrate.request import EFFORTS, Effort, Request
from turboquant_native.calibrate.sensitivity import DISTORTION, Sensitivity
from turboquant_native.calibrate.widths import CORRECTED, OUTLIER_FRACTIONS, WidthChooser, at_width
from turboquant_native.convert.conversion import Options, bits_per_weight, make_plan, notes_of
from turboquant_native.convert.sources import open_source


@pytest.fixture(autouse=True)
def little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Effort(4, 2, seq_len=16, probes=2, sensitivity_probes=2, adjacent=3)
    for name in EFFORTS:
        monkeypatch.setitem(requests.EFFORTS, name, small)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("choices") / "model")


def widths(path: Path) -> dict[str, int]:
    return {name: entry["bits"] for name, entry in _core.GgufFile(path).quantized().items()}


def test_by_default_a_budget_of_four_and_a_quarter_bits_is_calibrated(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert convert(folder, tmp_path / "m.gguf", "--json", "--quiet") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["settings"]["auto_outliers"] is True
    assert figures["settings"]["bpw"] == 4.25 and figures["settings"]["effort"] == "fast" and figures["measured_kld"] > 0
    assert 0.93 * 4.25 <= figures["bpw"] <= 4.25


def test_one_width_for_the_layers_is_calibrated_too(folder: Path, tmp_path: Path) -> None:
    assert convert(folder, tmp_path / "m.gguf", "--bits", 3, "--quiet") == 0
    assert {bits for name, bits in widths(tmp_path / "m.gguf").items() if name.startswith("blk.")} == {3}
    assert (tmp_path / "m.gguf.quant.json").exists()


def test_effort_none_rounds_plainly_and_says_what_it_costs(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert convert(folder, tmp_path / "m.gguf", "--effort", "none") == 0
    assert "four times as much as --effort fast" in capsys.readouterr().err
    found = widths(tmp_path / "m.gguf")
    assert found.pop("token_embd.weight") == 8 and set(found.values()) == {4}
    assert leftovers(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--bits", 4, "--bpw", 3], "--bpw 3.0 and --bits 4"),
        (["--bits", 4, "--size", "1MB"], "--size 1000000 and --bits 4"),
        (["--bpw", 3, "--size", "1MB"], "--bpw 3.0 and --size 1000000"),
        (["--bits", 4, "--outtype", "f16"], "--bits 4 and --outtype f16"),
        (["--effort", "none", "--bpw", 3], "--bpw 3.0: --effort none measures nothing"),
        (["--effort", "none", "--calib", "x.txt"], "--calib x.txt: --effort none measures nothing"),
        (["--effort", "none", "--outliers", "auto"], "--outliers auto"),
        (["--outtype", "f32", "--embed-bits", 4], "--embed-bits 4: --outtype f32"),
    ],
)
def test_options_that_contradict_each_other_are_refused(folder: Path, tmp_path: Path, capsys: Any, arguments: list[Any], text: str) -> None:
    assert text in fails(capsys, folder, tmp_path / "out.gguf", *arguments)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("text", "size"), [("48MB", 48_000_000), ("1.5 GiB", 1.5 * 2**30), ("48M", 48_000_000), ("90000B", 90_000)])
def test_sizes_have_units(text: str, size: float) -> None:
    from turboquant_native.common.sizes import size_argument

    assert size_argument(text) == size


@pytest.mark.parametrize("text", ["48", "48mb", "MB", "-3MB"])
def test_a_size_without_a_unit_is_refused_with_the_right_spelling(text: str, folder: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        convert(folder, "m.gguf", f"--size={text}")
    assert "48MB, 1.5GiB or 48000000B" in capsys.readouterr().err


def test_named_widths_hold_beside_a_budget(folder: Path, tmp_path: Path) -> None:
    assert convert(folder, tmp_path / "m.gguf", "--bpw", 4.5, "--embed-bits", 6, "--tensor-bits", "attn_v=8", "--quiet") == 0
    found = widths(tmp_path / "m.gguf")
    assert found["token_embd.weight"] == 6 and found["blk.0.attn_v.weight"] == found["blk.1.attn_v.weight"] == 8


# --- embedding and output


def chooser(folder: Path, **options: Any) -> WidthChooser:
    return WidthChooser(open_source(str(folder)), Options(**options), Request(effort="fast"))


def test_what_outliers_are_predicted_to_save_is_the_energy_of_the_largest_weights(folder: Path) -> None:
    tensor = next(tensor for tensor in chooser(folder).allocatable() if not tensor.is_embedding)
    energy = np.sort(np.square(open_source(str(folder)).read(tensor.name), dtype=np.float64).ravel())[::-1]
    left = [(0.0, 1.0), *((part, 1 - energy[: round(part * energy.size)].sum() / energy.sum()) for part in OUTLIER_FRACTIONS)]
    assert energy.size * OUTLIER_FRACTIONS[0] > 1 and left[1][1] < 1
    np.testing.assert_allclose(chooser(folder)._outlier_gains(tensor, None), left, rtol=1e-6)


def test_embedding_and_output_get_what_pays_at_the_layers_width(tmp_path: Path) -> None:
    """The width of least loss plus bytes, at the price of a byte in the layers; monotone in how much the matrix matters."""
    folder = save_llama(tmp_path / "model", {**LLAMA, "tie_word_embeddings": False})
    chosen = chooser(folder, bits=4)
    plan = chosen.given()
    layers = [tensor for tensor in plan if tensor.spec is not None and not tensor.is_embedding]
    size = {bits: sum(at_width(tensor, bits).bytes for tensor in layers) for bits in (3, 4, 6)}
    prices = [
        CORRECTED * 0.05 * (DISTORTION[3] / DISTORTION[4] - 1) / (size[4] - size[3]),
        CORRECTED * 0.05 * (1 - DISTORTION[6] / DISTORTION[4]) / (size[6] - size[4]),
    ]
    before = 0
    for cost in (1e-5, 1e-3, 0.02, 0.2, 2.0, 100.0):
        sensitivity = Sensitivity({"token_embd.weight": 1e-9, "output.weight": cost}, together=0.05)
        found = {tensor.name: tensor.spec.bits for tensor in chosen.with_embeddings(sensitivity) if tensor.spec is not None}
        output = next(tensor for tensor in plan if tensor.name == "output.weight")
        total = {
            bits: sensitivity.at("output.weight", bits) + np.sqrt(prices[0] * prices[1]) * at_width(output, bits).bytes
            for bits in (1, 2, 3, 4, 6, 8)
        }
        assert found["output.weight"] == min(total, key=total.get)  # type: ignore[arg-type]
        assert found["token_embd.weight"] == 1 and before <= found["output.weight"]
        before = found["output.weight"]
    assert before == 8


@pytest.mark.parametrize("options", [{"embed_bits": 4}, {"output_bits": 4}, {"tensor_bits": (("token_embd", 4),)}])
def test_widths_that_an_option_names_are_not_open(folder: Path, options: dict[str, Any]) -> None:
    assert [tensor.name for tensor in chooser(folder, bits=3).open_embeddings()] == ["token_embd.weight"]
    assert chooser(folder, bits=3, **options).open_embeddings() == []


# --- what is said


def test_the_summary_has_words_that_a_user_has(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert convert(folder, tmp_path / "m.gguf", "--bits", 4) == 0
    text = capsys.readouterr().out
    embedding = widths(tmp_path / "m.gguf")["token_embd.weight"]
    found = re.search(rf"embedding TQN{embedding}: ([\d.]+) MB, (\d+)% of the file", text)
    assert found and "relative error" not in text
    assert "0.24 would be noticeable, 0.05 close to the original" in text and "already quantized" not in text


@pytest.mark.parametrize(
    ("kld", "words"), [(0.005, "hardly"), (0.05, "close to"), (0.24, "noticeable"), (0.8, "strong"), (5.0, "hardly usable")]
)
def test_losses_in_words(kld: float, words: str) -> None:
    assert words in in_words(kld)


def test_a_source_that_is_already_quantized_is_named(tmp_path: Path) -> None:
    plain = open_source(str(write_gguf(tmp_path / "plain.gguf", "llama", LLAMA, llama_tensors())), needs_tokenizer=False)
    assert plain.quantized_as is None and notes_of(plain, []) == []
    config = {**LLAMA, "hidden_size": 64, "intermediate_size": 96}
    path = write_gguf(tmp_path / "q.gguf", "llama", config, llama_tensors(config), qtype=gguf.GGMLQuantizationType.Q4_1)
    rounded = open_source(str(path), needs_tokenizer=False)
    assert "already quantized (Q4_1, 5.0 bits per weight)" in notes_of(rounded, [])[0]


def test_a_dry_run_names_the_open_width_and_writes_nothing(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert convert(folder, tmp_path / "m.gguf", "--dry-run", "--bits", 4) == 0
    assert "token_embd.weight: the width is chosen by measured loss" in capsys.readouterr().out and leftovers(tmp_path) == []


def test_a_plan_that_exists_decides_without_a_budget(folder: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    source = open_source(str(folder))
    packed = [tensor for tensor in make_plan(source, Options()) if tensor.spec is not None]
    plan.write_text(json.dumps({tensor.name: {"bits": 2} for tensor in packed}))
    assert convert(folder, tmp_path / "m.gguf", "--plan", plan, "--quiet") == 0
    assert set(widths(tmp_path / "m.gguf").values()) == {2}
    assert bits_per_weight(packed) > 2

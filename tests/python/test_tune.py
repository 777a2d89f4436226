"""`tqn tune`: a tiny model learns from its source; the file that comes of it, interruptions, and what is refused."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny_models import LLAMA, TEXT, save_llama  # noqa: E402
from turboquant_native import _core  # noqa: E402
from turboquant_native.calibrate.text import vocabulary_of  # noqa: E402
from turboquant_native.commands import cli, convert  # noqa: E402
from turboquant_native.common.errors import ConvertError  # noqa: E402
from turboquant_native.convert.conversion import Options, make_plan, write_model  # noqa: E402
from turboquant_native.convert.inspection import verify  # noqa: E402
from turboquant_native.convert.sources import open_source  # noqa: E402
from turboquant_native.evaluate.evaluation import divergence, normalize  # noqa: E402
from turboquant_native.train import distillation, text, tuner  # noqa: E402
from turboquant_native.train.capture import Captured  # noqa: E402
from turboquant_native.train.network import Network  # noqa: E402
from turboquant_native.train.optimizer import Adam  # noqa: E402
from turboquant_native.train.progressive import groups  # noqa: E402
from turboquant_native.train.settings import Settings  # noqa: E402
from turboquant_native.train.tuner import Tuner  # noqa: E402
from turboquant_native.train.weights import Learned, of_file, of_source  # noqa: E402

SETTINGS: dict[str, Any] = {"tokens": 24 * 8 * 32, "text_tokens": 64 * 32, "seq_len": 32, "windows": 8, "rate": 5e-3, "codes": False}


def rounded(folder: Path, path: Path, **options: Any) -> Path:
    source = open_source(str(folder))
    write_model(source, make_plan(source, Options(**{"bits": 2, "embed_bits": 4, "outliers": 0.01, **options})), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save_llama(tmp_path_factory.mktemp("teacher") / "tiny")
    (made / "calib.txt").write_text(TEXT * 40)  # the standard library's texts take longer to read than a tiny model to tune
    return made


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Path:
    return rounded(folder, tmp_path / "model.gguf")


def tune(model: Path, folder: Path, target: Path, **changes: Any) -> Any:
    return Tuner(model, open_source(str(folder)), target, Settings(**{**SETTINGS, "calib": folder / "calib.txt", **changes}), threads=1)


def engine_divergence(path: Path, folder: Path, tmp_path: Path) -> float:
    """From the source, by the engine, on tokens that nothing was tuned on."""
    source = open_source(str(folder))
    reference = tmp_path / "reference.gguf"
    if not reference.exists():
        write_model(source, make_plan(source, Options(outtype="f32")), reference)
    tokens = np.random.default_rng(9).integers(0, LLAMA["vocab_size"], 60).astype(np.int32)
    theirs, ours = (
        normalize(_core.Context(_core.Model(str(file), threads=1, precision="f32")).eval(tokens, 0, logits="all"))
        for file in (reference, path)
    )
    return float(divergence(theirs, ours).mean())


def test_a_tuned_file_is_an_ordinary_file_nearer_to_its_source(model: Path, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "tuned.gguf"
    model.with_name("model.gguf.quant.json").write_text(json.dumps({"tensors": {"blk.0.attn_q.weight": {"relative_error": 0.1}}}))
    result = tune(model, folder, target).run()
    assert result.kept and result.after < 0.8 * result.before
    assert engine_divergence(target, folder, tmp_path) < 0.9 * engine_divergence(model, folder, tmp_path)
    assert verify(target).ok
    before, after = _core.GgufFile(model), _core.GgufFile(target)
    assert before.tensors() == after.tensors()
    fixed = {"turboquant.tensors", "turboquant.checksums", "turboquant.header_sha256", "turboquant.calibration"}
    assert {k: v for k, v in before.metadata.items() if k not in fixed} == {k: v for k, v in after.metadata.items() if k not in fixed}
    for name, _, _ in before.tensors():
        same = np.array_equal(before.data(name), after.data(name))
        assert same == name.endswith((".tqn", ".tqn_cb", ".tqn_out_ptr", ".tqn_out_col")), name
    figures = json.loads(after.metadata["turboquant.calibration"])
    assert figures["kld"] == pytest.approx(result.after) and figures["tuned_tokens"] == SETTINGS["tokens"]
    report = json.loads((tmp_path / "tuned.gguf.quant.json").read_text())
    assert report["tensors"]["blk.0.attn_q.weight"] == {"relative_error": 0.1} and report["tuning"]["curve"][0] == [
        0,
        pytest.approx(result.before),
    ]
    assert not list(tmp_path.glob(".tuned.gguf*"))
    pytest.importorskip("matplotlib")
    assert cli.main(["report", str(target), "-o", str(tmp_path / "report.html")]) == 0
    assert "while the file was tuned" in (tmp_path / "report.html").read_text()


def test_types_of_metadata_stay(model: Path, folder: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    target = tmp_path / "tuned.gguf"
    tune(model, folder, target, tokens=8 * 32).run()
    types = [{key: field.types for key, field in GGUFReader(path).fields.items()} for path in (model, target)]
    types[1].pop("turboquant.calibration")
    assert types[0] == types[1]


@pytest.mark.parametrize("codes", [False, True])
def test_the_same_seed_gives_the_same_bytes_and_an_interrupted_run_too(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: bool
) -> None:
    whole, broken, other = tmp_path / "whole.gguf", tmp_path / "broken.gguf", tmp_path / "other.gguf"
    tune(model, folder, whole, codes=codes, tokens=12 * 8 * 32).run()
    monkeypatch.setattr(tuner, "_SAVE_SECONDS", 0.0)
    run = tune(model, folder, broken, codes=codes, tokens=12 * 8 * 32)
    differentiate, steps = run._differentiate, []

    def interrupted(student: Any, teacher: Any, windows: Any, step: int) -> None:
        steps.append(step)
        if step == 7:
            raise KeyboardInterrupt
        differentiate(student, teacher, windows, step)

    monkeypatch.setattr(run, "_differentiate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert not broken.exists() and (tmp_path / ".broken.gguf.work" / "state.pt").exists()
    resumed = tune(model, folder, broken, codes=codes, tokens=12 * 8 * 32)
    differentiate, steps = resumed._differentiate, []
    monkeypatch.setattr(resumed, "_differentiate", lambda *args: (steps.append(args[-1]), differentiate(*args)))
    resumed.run()
    assert steps[0] == 7 and broken.read_bytes() == whole.read_bytes()
    tune(model, folder, other, codes=codes, tokens=12 * 8 * 32, seed=1).run()
    assert other.read_bytes() != whole.read_bytes()


def test_statistics_of_keys_stay_in_the_file(folder: Path, tmp_path: Path) -> None:
    """They describe the original's keys; no teacher has them, and nothing learns there."""
    path, target = tmp_path / "model.gguf", tmp_path / "tuned.gguf"
    source, kept = open_source(str(folder)), {}
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_key_value_heads"]
    shape = (heads, config["hidden_size"] // config["num_attention_heads"])
    for kind in ("mean", "balance"):
        kept[f"blk.0.attn_k_cache_{kind}.weight"] = np.random.default_rng(len(kept)).uniform(0.5, 2, shape).astype(np.float32)
    write_model(source, make_plan(source, Options(bits=2, embed_bits=4)), path, further=kept)
    assert tune(path, folder, target, tokens=4 * 8 * 32).run().kept
    after = _core.GgufFile(target)
    for name, values in kept.items():
        np.testing.assert_array_equal(after.data(name).reshape(shape), values)
    _core.Model(str(target)).close()


def test_what_gains_nothing_is_not_kept(model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "tuned.gguf"
    run = tune(model, folder, target)
    monkeypatch.setattr(run, "_tune", lambda *args: None)
    result = run.run()
    assert not result.kept and "no clear gain" in result.text()
    before, after = _core.GgufFile(model), _core.GgufFile(target)
    assert all(np.array_equal(before.data(name), after.data(name)) for name, _, _ in before.tensors())
    assert json.loads(after.metadata["turboquant.calibration"])["tuned_tokens"] == 0


def test_a_mixture_of_half_types_is_tuned(folder: Path, tmp_path: Path) -> None:
    """Embeddings in F16 learn; they stay F16."""
    model, target = rounded(folder, tmp_path / "model.gguf", embed_bits=16, outliers=0.0), tmp_path / "tuned.gguf"
    assert tune(model, folder, target).run().kept
    before, after = (_core.GgufFile(path).data("token_embd.weight") for path in (model, target))
    assert before.dtype == after.dtype == np.float16 and not np.array_equal(before, after)


def test_refusals(model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(*arguments: str) -> str:
        assert cli.main(["tune", *arguments]) == 1
        return capsys.readouterr().err

    other = save_llama(tmp_path / "other", {**LLAMA, "intermediate_size": 84})
    plain = tmp_path / "plain.gguf"
    source = open_source(str(folder))
    write_model(source, make_plan(source, Options(outtype="f16")), plain)
    assert "nothing to tune" in refusal(str(plain), "--teacher", str(folder))
    assert "ffn_down.weight is (48, 80), there (48, 84)" in refusal(str(model), "--teacher", str(other))
    assert "no such file or folder" in refusal(str(model), "--teacher", "/nowhere")
    assert "exists already" in refusal(str(model), "--teacher", str(folder), "-o", str(plain))
    assert "is the file to tune itself" in refusal(str(model), "--teacher", str(folder), "-o", str(model), "--overwrite")
    assert "--rate 2.0" in refusal(str(model), "--teacher", str(folder), "--rate", "2")
    assert "--tokens 10" in refusal(str(model), "--teacher", str(folder), "--tokens", "10")


def test_a_rate_that_destroys_the_model_is_named(model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "add_gradients", lambda *args: torch.tensor(float("nan")))
    with pytest.raises(ConvertError, match="divergence is nan at step 0"):
        tune(model, folder, tmp_path / "tuned.gguf").run()


def test_sampled_text_is_kept_batch_by_batch(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _core.Model(str(model), threads=1)
    bos = vocabulary_of(engine).bos  # type: ignore[union-attr]
    whole = text.sample(engine, 10, 16, seed=3, slots=4)
    assert whole.shape == (10, 16) and whole.min() >= 0 and whole.max() < LLAMA["vocab_size"]
    assert (whole[0::4, 0] == bos).all() and len(np.unique(whole[1::2, 0])) > 2
    kept = tmp_path / "text"
    text.sample(engine, 4, 16, seed=3, slots=4, checkpoint=kept)
    drawn: list[int] = []
    draw_batch = text._sample_batch
    monkeypatch.setattr(text, "_sample_batch", lambda *args: (drawn.append(args[1]), draw_batch(*args))[1])
    assert np.array_equal(text.sample(engine, 10, 16, seed=3, slots=4, checkpoint=kept), whole)
    assert drawn == [4, 2]


def test_candidates_are_drawn_by_their_probabilities() -> None:
    best = np.zeros((4000, 3), [("logit", np.float32), ("token", np.int32)])
    best["logit"], best["token"] = [2.0, 1.0, 0.0], [7, 5, -1]
    drawn = text._draw(best, np.random.default_rng(0))
    assert set(drawn) == {7, 5}
    assert np.mean(drawn == 7) == pytest.approx(np.e / (1 + np.e), abs=0.03)
    best["logit"][3, 0] = np.nan
    with pytest.raises(ConvertError, match="not finite"):
        text._draw(best, np.random.default_rng(0))


def test_batches_show_every_window_once_before_any_twice() -> None:
    def windows(count: int, first: int) -> np.ndarray:
        return np.arange(first, first + count, dtype=np.int32)[:, None]

    corpus = text.Corpus(windows(14, 0), windows(5, 100), windows(1, 200), real_share=0.25, seed=0)
    rows = np.concatenate([corpus.batch(step, 8) for step in range(7)]).ravel()
    sampled, real = rows[rows < 100], rows[rows >= 100]
    assert len(sampled) == 42 and len(real) == 14
    for part in (sampled[:14], sampled[14:28], sampled[28:]):
        assert sorted(part) == list(range(14))
    assert not np.array_equal(sampled[:14], sampled[14:28])
    assert sorted(real[:5]) == sorted(real[5:10]) == list(range(100, 105))


def test_codes_are_chosen_again(model: Path, folder: Path, tmp_path: Path) -> None:
    """Every packed matrix has new codes of its own bits; what the student computed is what the file says."""
    target = tmp_path / "tuned.gguf"
    result = tune(model, folder, target, codes=True, tokens=40 * 8 * 32).run()
    assert result.kept and result.after < 0.8 * result.before
    assert verify(target).ok
    assert engine_divergence(target, folder, tmp_path) < engine_divergence(model, folder, tmp_path)
    before, after = _core.GgufFile(model), _core.GgufFile(target)
    assert before.tensors() == after.tensors()
    for name, entry in before.quantized().items():
        assert not np.array_equal(before.data(f"{name}.tqn"), after.data(f"{name}.tqn")), name
        assert {key: entry[key] for key in ("bits", "seed", "outliers")} == {
            key: after.quantized()[name][key] for key in ("bits", "seed", "outliers")
        }


def test_groups_follow_the_computation(model: Path) -> None:
    """Embedding, then what reads the residual stream before what writes to it."""
    engine = _core.Model(str(model), threads=1)
    network = Network(engine, of_file(engine.file, torch.device("cpu"), torch.float32), 8, torch.float32)
    kinds = [sorted({name.split(".")[-2] for name in group}) for group in groups(network)]
    assert kinds == [["token_embd"], ["attn_k", "attn_q", "attn_v", "ffn_gate", "ffn_up"], ["attn_output", "ffn_down"]]
    assert sorted(name for group in groups(network) for name in group) == sorted(engine.file.quantized())


def test_adam_is_pytorchs() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    reference, optimizer = torch.optim.Adam([theirs], lr=0.02, betas=(0.9, 0.99), eps=1e-15), Adam()
    for _ in range(7):
        gradient = torch.from_numpy(rng.standard_normal(5).astype(np.float32))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step([Learned("w", "scales", ours, unit=4.0)], {"scales": 0.005})
        reference.step()
    torch.testing.assert_close(ours.data, theirs.data)
    assert ours.grad is None


def test_convert_tunes_what_it_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And goes on with the quantized file where tuning was interrupted."""
    target = tmp_path / "out.gguf"
    command = [
        "convert",
        str(folder),
        str(target),
        "--bits",
        "2",
        "--embed-bits",
        "4",
        "--effort",
        "none",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    command += ["--tune", "--tokens", "6144", "--text-tokens", "2048", "--seq-len", "32", "--windows", "8", "--rate", "0.005"]
    with monkeypatch.context() as patch:
        patch.setattr(tuner, "add_gradients", interrupt)
        assert cli.main(command) == 130
    assert not target.exists() and "goes on from what is kept" in capsys.readouterr().err
    monkeypatch.setattr(convert, "_quantize", None)  # must not be called again
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] and verify(target).ok
    assert sorted(path.name for path in tmp_path.iterdir() if "out.gguf" in path.name) == ["out.gguf", "out.gguf.quant.json"]


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


def test_convert_refuses_tuning_without_sense(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--tokens", "6M"], "--tokens 6000000: goes with --tune"),
        (["--tune", "--outtype", "f16"], "leaves nothing to tune"),
        (["--tune", "--rate", "0"], "--rate 0.0"),
    ):
        assert cli.main(["convert", str(folder), "/nowhere/out.gguf", *options]) == 1
        assert message in capsys.readouterr().err


def test_real_text_is_the_users_or_the_standard_librarys(model: Path, folder: Path, tmp_path: Path) -> None:
    engine = _core.Model(str(model), threads=1)
    for calib in (folder / "calib.txt", None):
        learned, held_out = text.real_windows(engine, calib, 16, 32)
        assert learned.shape == (28, 32) and held_out.shape == (4, 32)
    with pytest.raises(ConvertError, match="no such file or folder"):
        text.real_windows(engine, tmp_path / "none", 16, 32)


def test_real_text_comes_once_and_is_held_out_from_every_part(model: Path, tmp_path: Path) -> None:
    """Windows of --calib do not overlap; where there is less than was asked for there are fewer."""
    calib = tmp_path / "text.txt"
    calib.write_text(" ".join(str(number) for number in range(3000)))
    engine = _core.Model(str(model), threads=1)
    tokens = np.array(vocabulary_of(engine).encode(calib.read_text()), np.int32)  # type: ignore[union-attr]
    learned, held_out = text.real_windows(engine, calib, 10_000, 32)
    assert len(learned) + len(held_out) == len(tokens) // 32
    bos = int(vocabulary_of(engine).add_bos)  # type: ignore[union-attr]
    starts = [
        [start for start in range(len(tokens) - 31) if np.array_equal(tokens[start + bos : start + 32], window[bos:])]
        for window in np.concatenate([learned, held_out])
    ]
    places = sorted(found[0] for found in starts)
    assert all(later - earlier >= 32 for earlier, later in itertools.pairwise(places))
    held = sorted(found[0] for found in starts[len(learned) :])
    assert held[0] == 0 and held[-1] > 0.95 * (len(tokens) - 32) and len(held) == text.HELD_OUT


@pytest.mark.parametrize(("calib", "share", "windows"), [(None, 0.25, 60), (Path("texts"), 0.75, 768)])
def test_shares_of_real_text(calib: Path | None, share: float, windows: int) -> None:
    settings = Settings(tokens=1024 * 32, seq_len=32, windows=8, text_tokens=480 * 32, calib=calib)
    assert (settings.share_of_real_text, settings.real_windows) == (share, windows)
    assert Settings(real_share=0.0, calib=calib).share_of_real_text == 0


@pytest.mark.parametrize(
    ("large", "bits", "asked", "chosen"),
    [(0, 2, None, False), (1 << 30, 2, None, True), (1 << 30, 4, None, False), (0, 4, True, True), (1 << 30, 2, False, False)],
)
def test_codes_are_chosen_where_they_pay_and_there_is_memory_for_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int, bits: int, asked: bool | None, chosen: bool
) -> None:
    monkeypatch.setattr(tuner, "_LARGE", large)
    model = rounded(folder, tmp_path / "model.gguf", bits=bits)
    assert tune(model, folder, tmp_path / "tuned.gguf", codes=asked)._chooses_codes == chosen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_step_is_the_step(model: Path, folder: Path) -> None:
    """Gradients that a CUDA graph gives again are those of the same kernels, bit for bit."""
    engine, device = _core.Model(str(model), precision="f32"), torch.device("cuda")
    student = Network(engine, of_file(engine.file, device, torch.bfloat16), 32, torch.bfloat16)
    teacher = Network(engine, of_source(open_source(str(folder)), device, torch.bfloat16), 32, torch.bfloat16)
    learned = [each.tensor for each in student.weights.learned() if each.kind != "outliers"]  # theirs are sums in no fixed order
    captured = Captured(lambda tokens: distillation.add_gradients(student, teacher, tokens, 1.0), lambda: learned)
    for seed in range(3):
        tokens = torch.from_numpy(np.random.default_rng(seed).integers(0, 320, (8, 32))).to(device)
        loss, again = captured(tokens), [tensor.grad.clone() for tensor in learned if tensor.grad is not None]
        for tensor in learned:
            tensor.grad = None
        assert float(loss) == float(distillation.add_gradients(student, teacher, tokens, 1.0))
        assert len(again) == len(learned) and all(torch.equal(a, b.grad) for a, b in zip(again, learned, strict=True))


def test_without_torch_the_extra_is_named(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in [name for name in sys.modules if name.startswith("turboquant_native.train.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delattr("turboquant_native.train.tuner", raising=False)
    assert cli.main(["tune", str(model), "--teacher", str(folder), "-o", str(tmp_path / "out.gguf")]) == 1
    assert "pip install 'turboquant-native[train]'" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(["tune", str(model), "--teacher", str(folder), "--device", "cuda"]) == 1
    assert "PyTorch has no GPU here" in capsys.readouterr().err


def test_gradients_of_parts_add_up(model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that are differentiated some at a time, and logits some rows at a time, give what all together give."""
    found = []
    for tokens, values in ((10_000, 1 << 24), (64, 320 * 7)):
        monkeypatch.setitem(tuner._TOKENS_AT_ONCE, "cpu", tokens)
        monkeypatch.setitem(distillation._VALUES, "cpu", values)
        run = tune(model, folder, tmp_path / "tuned.gguf")
        weights = of_file(run._model.file, torch.device("cpu"), torch.float32)
        student = Network(run._model, weights, 32, torch.float32)
        teacher = Network(run._model, of_source(run._source, torch.device("cpu"), torch.float32), 32, torch.float32)
        run._differentiate(student, teacher, np.random.default_rng(2).integers(0, 320, (5, 32)).astype(np.int32), 0)
        found.append([each.tensor.grad for each in weights.learned()])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-3)

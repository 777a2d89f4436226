"""Whether a model fits: the estimate against what the engine takes, memory that is free, refusals and warnings of `tqn run`."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from tiny_models import LLAMA, llama_tensors, save_llama, write_gguf
from turboquant_native import _core
from turboquant_native.api import fit, machine
from turboquant_native.commands.cli import main
from turboquant_native.common import memory
from turboquant_native.convert import synthetic
from turboquant_native.convert.synthetic_shapes import GptOssShape, RecurrentShape
from turboquant_native.engine.snapshots import SNAPSHOTS_A_SLOT

SHAPES = (
    synthetic.Shape(2, 64, 96, 4, 2, 16, 128, architecture="qwen2", tied=False, qkv_bias=True),
    synthetic.Shape(3, 96, 64, 6, 3, 16, 300, architecture="llama", tied=True),
    RecurrentShape(5, 64, 96, 4, 2, 16, 128, n_key_heads=2, n_value_heads=4, state_dim=24, rope_dims=8),
    GptOssShape(2, 64, 128, 4, 2, 16, 128, n_experts=8, n_used=2),
)


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n_ctx", "n_batch"), [(32, 16), (500, 512), (700, 512)])
def test_the_estimate_is_what_the_engine_takes(tmp_path, shape, n_ctx, n_batch):
    synthetic.write(tmp_path / "model.gguf", shape, 4)
    found = fit.ModelFile(tmp_path / "model.gguf")
    model = _core.Model(str(tmp_path / "model.gguf"))
    context = _core.Context(model, n_ctx=n_ctx, n_batch=n_batch)
    taken = context.memory_bytes
    context.close()
    memory = found.memory(n_ctx, min(n_batch, n_ctx))
    assert memory.cache + memory.states + memory.planes == taken
    assert (memory.states > 0) == isinstance(shape, RecurrentShape) and (memory.scratch > 0) == isinstance(shape, GptOssShape)
    read = found.token_bytes - 2 * memory.states
    assert 0.8 * read <= model.weight_bytes <= read  # the engine counts matrices alone, of a mixture those of the experts that a token uses
    assert found.n_ctx_train == model.config["n_ctx_train"]
    model.close()


@pytest.mark.parametrize("cache", ["f16", "f32", "k8v4", "k4v4"])
def test_windowed_layers_keep_16_bits(tmp_path, cache):
    keys = {"attention.sliding_window": 32, "attention.sliding_window_pattern": 2, "context_length": 192}
    path = write_gguf(tmp_path / "model.gguf", "llama", LLAMA, llama_tensors(), keys)
    found, model = fit.ModelFile(path), _core.Model(str(path))
    assert [layer[2] for layer in found.layers] == [32, 0]
    context = _core.Context(model, n_ctx=192, n_batch=64, cache=cache)
    memory = found.memory(192, 64, cache)
    assert memory.cache + memory.planes == context.memory_bytes
    context.close()
    model.close()


def test_tied_weights_are_all_read(tiny_tqn):
    file = fit.ModelFile(tiny_tqn)
    assert file.token_bytes == file.weight_bytes


def test_recurrent_states_and_their_snapshots_count(tmp_path, monkeypatch, capsys):
    """The estimate holds when an engine has taken as many snapshots as it ever keeps."""
    synthetic.write(tmp_path / "model.gguf", SHAPES[2], 4)
    file, model = fit.ModelFile(tmp_path / "model.gguf"), _core.Model(str(tmp_path / "model.gguf"))
    context = _core.Context(model, n_ctx=64, n_batch=64)
    snapshots = []
    for n in range(SNAPSHOTS_A_SLOT):
        context.eval(np.array([n], np.int32), n)
        snapshots.append(context.snapshot(0))
    taken = context.memory_bytes + sum(snapshot.memory_bytes for snapshot in snapshots)
    found = file.fit(64, probe=False)
    assert found.cache + found.states + found.workspace - fit._PROGRAM == taken
    assert found.states == file.fit(32, probe=False).states == (1 + SNAPSHOTS_A_SLOT) * snapshots[0].memory_bytes
    states = sum(layer.get("state_bytes", 0) for layer in model.config["layers"])
    assert states == snapshots[0].memory_bytes and file.token_bytes == file.weight_bytes + 2 * states
    context.close()
    model.close()
    code, out, _ = call(capsys, "run", tmp_path / "model.gguf", "--fit-only", "--ctx", "64")
    assert code == 0 and "of recurrent layers, snapshots included" in out
    needed = found.needed
    monkeypatch.setattr(fit, "available_memory", lambda: needed - 1)
    assert file.fit(64, probe=False).largest_ctx < 64


_TAKEN = """
import sys
import numpy as np
from turboquant_native import _core
from turboquant_native.common.memory import own_memory
model = _core.Model(sys.argv[1], threads=2)
before = own_memory()
context = _core.Context(model, n_ctx=512, n_batch=512)
context.eval(np.arange(512, dtype=np.int32) % 128, 0)
print(own_memory() - before - context.memory_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process itself holds")
def test_mixtures_take_the_scratch_of_the_estimate(tmp_path):
    """What a pass of a whole batch adds to a new process beside the context's own memory: the experts' rows, which no context counts."""
    path = tmp_path / "model.gguf"
    synthetic.write(path, GptOssShape(2, 512, 1024, 4, 2, 16, 128, n_experts=8, n_used=4), 4)
    expected = fit.ModelFile(path).memory(512, 512).scratch
    taken = int(subprocess.run([sys.executable, "-c", _TAKEN, str(path)], check=True, capture_output=True, text=True).stdout)
    assert expected > 20 << 20 and 0.8 * expected < taken < 1.3 * expected, (taken, expected)


@pytest.fixture
def memory_for(tiny_tqn, monkeypatch):
    """Sets the free memory to what the tiny model needs with so many positions, and some bytes more."""
    file = fit.ModelFile(tiny_tqn)

    def limit(positions, more=0, share=1.0):
        needed = file.fit(positions, probe=False).needed
        monkeypatch.setattr(fit, "available_memory", lambda: int((needed + more) / share) + (share < 1))

    return limit


@pytest.mark.parametrize("asked", [None, 0, 100, 256, 1000])
def test_contexts(tiny_tqn, memory_for, asked):
    file = fit.ModelFile(tiny_tqn)
    memory_for(1000, more=1 << 30)
    roomy = file.fit(asked, probe=False)
    assert roomy.fits and roomy.largest_ctx == 256 and roomy.n_ctx == (asked or 256)
    memory_for(100)
    tight = file.fit(asked, probe=False)
    assert tight.largest_ctx == 100 and tight.fits == (asked in (None, 100))
    memory_for(1, more=-1)
    none = file.fit(asked, probe=False)
    assert none.largest_ctx == 0 and not none.fits


def test_large_contexts_are_round_numbers(tmp_path, monkeypatch):
    synthetic.write(tmp_path / "model.gguf", SHAPES[0], 4)
    file = fit.ModelFile(tmp_path / "model.gguf")
    needed = file.fit(5000, probe=False).needed
    monkeypatch.setattr(fit, "available_memory", lambda: needed)
    assert file.fit(None, probe=False).largest_ctx == 4864  # 19 * 256


def test_what_run_says(tiny_tqn, capsys, memory_for):
    asked = ["-n", "2", "-p", "fox", "--chat-format", "chatml"]
    code, _, err = call(capsys, "run", tiny_tqn, *asked, "--ctx", "300", "--threads", _core.cpu_count() + 1)
    assert code == 0 and "--ctx 300 is beyond the 256 tokens" in err and err.count("256") == 1 and f"on {_core.cpu_count()} cores" in err
    memory_for(200)
    code, out, err = call(capsys, "run", tiny_tqn, *asked, "--ctx", "250")
    assert code == 1 and out == "" and "--ctx 200 is the largest that fits" in err and "weights" in err
    code, out, err = call(capsys, "run", tiny_tqn, "--fit-only", "--ctx", "250", "--json")
    assert code == 1 and json.loads(out)["fits"] is False and json.loads(out)["largest_ctx"] == 200
    memory_for(120, share=fit._UNASKED)
    code, _, err = call(capsys, "run", tiny_tqn, *asked)
    assert code == 0 and "(context: 120 tokens, as free memory allows; the model's own is 256)" in err
    memory_for(1, more=-1)
    assert "no context fits" in call(capsys, "run", tiny_tqn, *asked)[2]


def test_fit_only(tiny_tqn, capsys, own_home):
    code, out, _ = call(capsys, "run", tiny_tqn, "--fit-only")
    assert code == 0 and "at most" in out and out.endswith("fits\n") and "256 tokens" in out
    assert 0 < json.loads((own_home / "machine.json").read_text())["bandwidth"] < 1e13
    machine.record(0, False, 1000, 100, 2.0)
    code, out, _ = call(capsys, "run", tiny_tqn, "--fit-only", "--json")
    found = json.loads(out)
    assert found["measured"] and found["tokens_per_second"] == pytest.approx(50_000 / fit.ModelFile(tiny_tqn).token_bytes)


def test_figures_of_the_machine(own_home, monkeypatch):
    assert machine.reading_rate(0, True) == (0.0, False) == machine.reading_rate(0, False, probe=False)
    machine.record(2, False, 1000, 3, 1.0)  # too few tokens to say anything
    assert not (own_home / "machine.json").exists()
    machine.record(2, False, 1000, 30, 1.0)
    assert machine.reading_rate(2, False) == (30_000.0, True) and machine.reading_rate(2, True) == (0.0, False)
    monkeypatch.setattr(machine.platform, "node", lambda: "another")
    assert machine.reading_rate(2, False, probe=False) == (0.0, False)
    for damaged in ("{", '{"machine": "another", "threads-2": "fast"}', '{"machine": "another", "threads-2": -1}'):
        (own_home / "machine.json").write_text(damaged)
        assert machine.reading_rate(2, False, probe=False) == (0.0, False)


def test_ordinary_files_name_their_type_and_the_command(tmp_path, capsys):
    import gguf

    config = {**LLAMA, "hidden_size": 64, "intermediate_size": 96}
    path = write_gguf(tmp_path / "my model.gguf", "llama", config, llama_tensors(config), qtype=gguf.GGMLQuantizationType.Q8_0)
    code, out, err = call(capsys, "run", path, "-p", "x")
    assert code == 1 and out == "" and "of type Q8_0" in err and f"tqn convert '{path}' '{tmp_path / 'my model.tqn.gguf'}'" in err


@pytest.mark.parametrize("value", ["many", -1, 2**31 + 1])
def test_damaged_metadata_is_named(tiny_tqn, value):
    file = _core.GgufFile(tiny_tqn)
    with pytest.raises(_core.FormatError, match=r"llama\.block_count must be a whole number"):
        fit._integer(str(tiny_tqn), {**file.metadata, "llama.block_count": value}, "block_count", None)


# --- free memory


def _group(folder, most, taken, cached):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")


def test_control_groups_limit_the_memory(tmp_path, monkeypatch):
    _group(tmp_path / "a", 1000, 400, 50)
    _group(tmp_path / "a" / "b", "max", 300, 0)
    found = memory._limits(tmp_path, "/a/b", "memory.max", "memory.current", "inactive_file")
    assert found == [650]  # the parent's: the group itself has no limit
    _group(tmp_path / "a" / "b", 100, 300, 0)
    assert memory._limits(tmp_path, "/a/b", "memory.max", "memory.current", "inactive_file") == [0, 650]
    assert memory._limits(tmp_path, "/", "memory.max", "memory.current", "inactive_file") == []
    monkeypatch.setattr(memory, "_cgroup_free", lambda root: [123])
    assert memory.available_memory() == 123
    monkeypatch.setattr(memory, "_cgroup_free", lambda root: [])
    assert memory.available_memory() > 1 << 20


def test_the_bandwidth_probe_ends():
    done = threading.Event()
    threading.Thread(target=lambda: (machine.memory_bandwidth(0.01), done.set())).start()
    assert done.wait(60)


def test_a_folder_runs(tmp_path, capsys):
    folder = save_llama(tmp_path / "model", {**LLAMA, "max_position_embeddings": 128})
    asked = ["--raw", "-p", "fox", "-n", "3", "--temp", "0"]
    code, out, err = call(capsys, "run", folder, *asked)
    assert code == 0 and "converting" in err and "converting" not in out
    again = call(capsys, "run", folder, *asked)
    assert again[:2] == (0, out) and "converting" not in again[2]

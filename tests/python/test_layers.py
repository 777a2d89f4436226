"""Models whose layers differ, what slots can return to, what the graph says of its matrices, and small files that ask for much."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tiny_models import LLAMA, THREE_LAYERS, llama_tensors, write_gguf
from turboquant_native._core import Context, FormatError, LayerRunner, Model

Floats = NDArray[np.float64]
HEADS, KV_HEADS, FEED_FORWARD, DIM = [4, 2, 6], [2, 2, 1], [80, 40, 120], 12
CONFIG = THREE_LAYERS
KEYS = {
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "feed_forward_length": FEED_FORWARD,
    "attention.key_length": DIM,
    "attention.value_length": DIM,
}
TOKENS = np.random.default_rng(5).integers(0, CONFIG["vocab_size"], 30).astype(np.int32)


def uneven_tensors() -> dict[str, Any]:
    """A model of three layers with their own numbers of heads and widths."""
    rng, d = np.random.default_rng(1), CONFIG["hidden_size"]
    tensors = llama_tensors(CONFIG)
    for i, (heads, kv_heads, n_ff) in enumerate(zip(HEADS, KV_HEADS, FEED_FORWARD, strict=True)):
        p = f"model.layers.{i}."
        q, kv = heads * DIM, kv_heads * DIM
        shapes = {f"self_attn.{n}_proj": s for n, s in {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}.items()}
        shapes |= {f"mlp.{n}_proj": s for n, s in {"gate": (n_ff, d), "up": (n_ff, d), "down": (d, n_ff)}.items()}
        tensors |= {f"{p}{name}.weight": rng.standard_normal(shape).astype(np.float32) * 0.2 for name, shape in shapes.items()}
    return tensors


def norm(x: Floats, weight: Floats) -> Floats:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + CONFIG["rms_norm_eps"]) * weight


def reference_logits(t: dict[str, Any], tokens: NDArray[np.int32]) -> Floats:
    """Every position's logits, in float64."""
    n = len(tokens)
    angles = np.outer(np.arange(n), CONFIG["rope_theta"] ** (-np.arange(0, DIM, 2) / DIM))
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def turned(x: Floats) -> Floats:
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = t["model.embed_tokens.weight"][tokens].astype(np.float64)
    for i, (heads, kv_heads) in enumerate(zip(HEADS, KV_HEADS, strict=True)):
        w = {name: t[f"model.layers.{i}.{name}.weight"].T.astype(np.float64) for name in ("self_attn.q_proj", "self_attn.k_proj")}
        w |= {name: t[f"model.layers.{i}.{name}.weight"].T.astype(np.float64) for name in ("self_attn.v_proj", "self_attn.o_proj")}
        w |= {name: t[f"model.layers.{i}.{name}.weight"].T.astype(np.float64) for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}
        y = norm(x, t[f"model.layers.{i}.input_layernorm.weight"])
        q = turned((y @ w["self_attn.q_proj"]).reshape(n, heads, DIM))
        k = np.repeat(turned((y @ w["self_attn.k_proj"]).reshape(n, kv_heads, DIM)), heads // kv_heads, 1)
        v = np.repeat((y @ w["self_attn.v_proj"]).reshape(n, kv_heads, DIM), heads // kv_heads, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(DIM)
        scores = np.exp(np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf))
        attended = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        x = x + attended.reshape(n, -1) @ w["self_attn.o_proj"]
        y = norm(x, t[f"model.layers.{i}.post_attention_layernorm.weight"])
        gate = y @ w["mlp.gate_proj"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["mlp.up_proj"])) @ w["mlp.down_proj"]
    return norm(x, t["model.norm.weight"]) @ t["model.embed_tokens.weight"].T.astype(np.float64)


@pytest.fixture(scope="module")
def uneven_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("uneven") / "m.gguf", "qwen2", CONFIG, uneven_tensors(), KEYS)


@pytest.fixture(scope="module")
def expected() -> Floats:
    return reference_logits(uneven_tensors(), TOKENS)


def assert_near(found: NDArray[np.float32], expected: Floats) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# --- layers that differ


@pytest.mark.parametrize("device", ["cpu", "cpu*1,cpu*2", "cpu*2,cpu*1"])
def test_layers_of_different_shapes(uneven_path: Path, expected: Floats, device: str) -> None:
    """At once, in pieces, in another slot that took over a prefix, and from a saved state."""
    model = Model(str(uneven_path), precision="f32", device=device)
    assert [layer["n_heads"] for layer in model.config["layers"]] == HEADS
    assert [layer["n_ff"] for layer in model.config["layers"]] == FEED_FORWARD
    context = Context(model, n_ctx=40, n_slots=3)
    assert_near(context.eval(TOKENS, 0, logits="all"), expected)
    context.eval(TOKENS[:20], 0, slot=1, logits="none")
    assert_near(context.eval(TOKENS[20:], 20, slot=1, logits="all"), expected[20:])
    context.copy_slot(1, 2, 17)
    assert_near(context.eval(TOKENS[17:], 17, slot=2, logits="all"), expected[17:])
    other = Context(model, n_ctx=32)
    other.load(0, context.save(2, 11))
    assert_near(other.eval(TOKENS[11:], 11, logits="all"), expected[11:])


def test_layers_of_different_shapes_one_by_one(uneven_path: Path, expected: Floats) -> None:
    runner = LayerRunner(Model(str(uneven_path), precision="f32"), 10)
    hidden = runner.embed(TOKENS.reshape(3, 10))
    for layer in range(3):
        hidden = runner.layer(layer, hidden)
    assert_near(runner.head(hidden.reshape(30, -1)[:10]), expected[:10])


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("attention.head_count", [4, 2], "has 2 numbers for 3 layers"),
        ("attention.head_count", [4, 2, 0], "head_count is 0"),
        ("attention.head_count_kv", [2, 2, 4], "is 4, which does not divide 6 heads"),
        ("feed_forward_length", [80, 40], "has 2 numbers for 3 layers"),
        ("feed_forward_length", [80, 41, 120], "blk.1.ffn_gate.weight has the shape"),
        ("attention.head_count", [4, 2, 5], "blk.2.attn_q.weight has the shape"),
    ],
)
def test_lists_that_do_not_fit_the_layers(tmp_path: Path, key: str, value: list[int], text: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", "qwen2", CONFIG, uneven_tensors(), {**KEYS, key: value})
    with pytest.raises(FormatError, match=text):
        Model(str(path))


# --- slots


def test_slots_go_back_and_return(uneven_path: Path) -> None:
    context = Context(Model(str(uneven_path), precision="f32"), n_ctx=40, n_slots=2)
    context.eval(TOKENS[:10], 0, logits="none")
    moment = context.snapshot(0)
    assert (moment.slot, moment.positions, moment.intact, moment.memory_bytes) == (0, 10, True, 0)
    after = context.eval(TOKENS[10:15], 10)
    assert context.positions(0) == 15
    context.restore(0, moment)
    assert context.positions(0) == 10
    assert (context.eval(TOKENS[10:15], 10) == after).all()
    context.restore(1, moment)
    assert (context.eval(TOKENS[10:15], 10, slot=1) == after).all()
    context.rewind(0, 4)
    assert context.positions(0) == 4 and not moment.intact
    with pytest.raises(ValueError, match="after 10 positions is lost"):
        context.restore(0, moment)
    with pytest.raises(ValueError, match="holds 4 positions, not 5"):
        context.rewind(0, 5)
    with pytest.raises(ValueError, match=r"slot 2 is not in 0 \.\. 1"):
        context.rewind(2, 0)
    with pytest.raises(ValueError, match="position 5 does not follow the 4 positions of slot 0"):
        context.eval(TOKENS[:1], 5)
    assert (context.eval(TOKENS[4:15], 4) == context.eval(TOKENS[4:15], 4)).all()  # an earlier position goes back by itself


def test_snapshots_belong_to_their_context(uneven_path: Path) -> None:
    model = Model(str(uneven_path))
    moment = Context(model, n_ctx=8).snapshot(0)
    with pytest.raises(ValueError, match="another context"):
        Context(model, n_ctx=8).restore(0, moment)


# --- what the graph says of its matrices


def sites_of(path: Path, layer: int) -> list[tuple[str, str, list[str], str, bool]]:
    sites = LayerRunner(Model(str(path)), 4).input_sites(layer)
    return [(site.name, site.group, site.matrices, site.writes_to, site.adds_directly) for site in sites]


def test_the_graph_names_its_input_sites(uneven_path: Path) -> None:
    q, o, gate, down = "blk.1.attn_q", "blk.1.attn_output", "blk.1.ffn_gate", "blk.1.ffn_down"
    assert sites_of(uneven_path, 1) == [
        (q, q, [f"blk.1.attn_{n}.weight" for n in "qkv"], "", False),
        (o, o, [f"{o}.weight"], q, True),
        (gate, gate, [f"{gate}.weight", "blk.1.ffn_up.weight"], "", False),
        (down, down, [f"{down}.weight"], gate, True),
    ]
    with pytest.raises(ValueError, match=r"layer 3 is not in 0 \.\. 2"):
        sites_of(uneven_path, 3)


def test_taps_see_the_sites_that_the_graph_names(uneven_path: Path) -> None:
    runner = LayerRunner(Model(str(uneven_path)), 10)
    seen: list[str] = []
    runner.layer(2, runner.embed(TOKENS[None, :10]), lambda site, x: seen.append(site))
    assert [site for site in seen if not site.endswith("/residual")] == [site.name for site in runner.input_sites(2)]


def test_scaled_branches_are_not_added_directly(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "granite", LLAMA, llama_tensors(), {"residual_scale": 0.5})
    assert [(site[3], site[4]) for site in sites_of(path, 0)] == [
        ("", False), ("blk.0.attn_q", False), ("", False), ("blk.0.ffn_gate", False)
    ]  # fmt: skip


def expert_tensors() -> dict[str, Any]:
    """Router and three experts for each layer, under the names of converted files."""
    rng, d, n_ff = np.random.default_rng(2), LLAMA["hidden_size"], LLAMA["intermediate_size"]
    shapes: dict[str, tuple[int, int]] = {}
    for i in range(LLAMA["num_hidden_layers"]):
        shapes[f"blk.{i}.ffn_gate_inp.weight"] = (3, d)
        for e in range(3):
            shapes |= {f"blk.{i}.ffn_{kind}.{e}.weight": (n_ff, d) for kind in ("gate", "up")}
            shapes[f"blk.{i}.ffn_down.{e}.weight"] = (d, n_ff)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_experts_are_sites_of_one_group(tmp_path: Path) -> None:
    tensors = {name: w for name, w in llama_tensors().items() if ".mlp." not in name}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA, tensors, {"expert_count": 3, "expert_used_count": 2}, expert_tensors())
    sites = sites_of(path, 1)[2:]
    assert sites[0] == ("blk.1.ffn_gate_inp", "blk.1.ffn_gate_inp", ["blk.1.ffn_gate_inp.weight"], "", False)
    assert sites[3:5] == [
        ("blk.1.ffn_gate.1", "blk.1.ffn_gate", ["blk.1.ffn_gate.1.weight", "blk.1.ffn_up.1.weight"], "", False),
        ("blk.1.ffn_down.1", "blk.1.ffn_down", ["blk.1.ffn_down.1.weight"], "", False),
    ]
    assert len(sites) == 7


# --- small files that ask for much


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"block_count": 4096}, "block_count is 4096, which takes 16384 tensors or more; the file has"),
        ({"block_count": 10**9}, "block_count is 1000000000"),
        ({"expert_count": 4096, "expert_used_count": 2}, "expert_count is 4096, which takes 24576 tensors or more"),
        ({"attention.key_length": 2**29}, "key_length is 536870912"),
        ({"attention.key_length": 2**20, "attention.value_length": 2**20}, "attn_q.weight has the shape"),
        ({"attention.head_count": [2] * 10**6}, "has 1000000 numbers for 2 layers"),
    ],
)
def test_small_files_that_ask_for_much_are_refused_at_once(tmp_path: Path, keys: dict[str, Any], text: str) -> None:
    with pytest.raises(FormatError, match=text):
        Model(str(write_gguf(tmp_path / "m.gguf", "llama", LLAMA, llama_tensors(), keys)))


# --- forked processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_with_threads_of_its_own(uneven_path: Path) -> None:
    """And closes what it inherited, whether it used it or not; one forked in the middle of a pass is told so."""
    code = """
    import os, sys, threading, warnings
    warnings.simplefilter("ignore")
    import numpy as np
    from turboquant_native._core import Context, Model
    model = Model(sys.argv[1], threads=2)
    tokens = np.arange(1, 25, dtype=np.int32)
    context, unused = Context(model, n_ctx=64), Context(model, n_ctx=64)
    wanted = context.eval(tokens, 0)

    def child(work):
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if work() else 1)
            finally:
                os._exit(2)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def equal():
        return (context.eval(tokens, 0) == wanted).all()

    def close():
        context.close(), unused.close(), model.close()
        return True

    assert child(equal) == 0 and child(close) == 0 and child(lambda: equal() and close()) == 0
    assert child(lambda: child(equal) == 0 and equal()) == 0  # a child's child

    def either():  # forked while another thread computes
        try:
            return equal()
        except RuntimeError as error:
            context.close()
            return "forked" in str(error)

    stop = threading.Event()

    def busy():
        while not stop.is_set():
            context.eval(tokens, 0, logits="all")

    thread = threading.Thread(target=busy)
    thread.start()
    found = [child(either) for _ in range(20)]
    stop.set(), thread.join()
    assert found == [0] * 20, found
    assert equal()
    print("fine")
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(uneven_path)], capture_output=True, text=True, timeout=120)
    assert result.stdout == "fine\n", result.stderr

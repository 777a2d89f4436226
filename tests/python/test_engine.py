"""The engine behind the extension module: passes, slots, saved states, precision, threads, closing."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import convert
from tiny_models import THREE_LAYERS, llama_tensors, save_llama, write_gguf
from turboquant_native import Llama
from turboquant_native._core import Context, FormatError, LayerRunner, Model, UnsupportedError, backends, cpu_count

Ints = NDArray[np.int32]
CONFIG = THREE_LAYERS
VOCAB = CONFIG["vocab_size"]


def ints(*values: int) -> Ints:
    return np.array(values, np.int32)


def random_tokens(n: int, seed: int = 0) -> Ints:
    return np.random.default_rng(seed).integers(0, VOCAB, n).astype(np.int32)


# --- passes


def tolerance(request: pytest.FixtureRequest) -> float:
    """Of the largest logit. How many rows a pass has may show in a float's last bit, which may take an int8 activation to its neighbour,
    one part in 127 of the largest."""
    return 1e-5 if request.node.callspec.params["model"] == "f32" else 2 / 127


def test_batches_equal_single_tokens(model: Model, request: pytest.FixtureRequest) -> None:
    tokens = random_tokens(40)
    whole = Context(model).eval(tokens, 0, logits="all")
    batched = Context(model, n_batch=7).eval(tokens, 0, logits="all")
    context = Context(model)
    single = np.stack([context.eval(tokens[i : i + 1], i) for i in range(len(tokens))])
    scale = np.abs(whole).max()
    np.testing.assert_allclose(batched, whole, rtol=0, atol=tolerance(request) * scale)
    np.testing.assert_allclose(single, whole, rtol=0, atol=tolerance(request) * scale)


def test_more_output_rows_than_one_pass_of_the_output_layer(model: Model, request: pytest.FixtureRequest) -> None:
    """More than 64 rows: the output layer runs several times over one pass."""
    tokens = random_tokens(64)
    context = Context(model, n_ctx=64, n_slots=3, n_batch=192)
    rows = np.arange(192, dtype=np.int32)
    logits = context.forward(np.tile(tokens, 3), np.tile(np.arange(64, dtype=np.int32), 3), np.repeat(ints(0, 1, 2), 64), rows)
    alone = Context(model).eval(tokens, 0, logits="all")
    np.testing.assert_allclose(logits, np.tile(alone, (3, 1)), rtol=0, atol=tolerance(request) * np.abs(alone).max())


def test_slots_are_independent(model: Model) -> None:
    """Three sequences of different lengths, mixed in one batch, then one token of each at a time."""
    sequences = [random_tokens(n, seed) for seed, n in enumerate((5, 11, 8))]
    context = Context(model, n_slots=3)
    prompts = [sequence[:-2] for sequence in sequences]
    last = np.cumsum([len(prompt) for prompt in prompts]).astype(np.int32) - 1
    logits = [
        context.forward(
            np.concatenate(prompts),
            np.concatenate([np.arange(len(prompt), dtype=np.int32) for prompt in prompts]),
            np.repeat(ints(2, 0, 1), [len(prompt) for prompt in prompts]),
            last,
        )
    ]
    for step in (-2, -1):
        tokens = ints(*(sequence[step] for sequence in sequences))
        positions = ints(*(len(sequence) + step for sequence in sequences))
        logits.append(context.forward(tokens, positions, ints(2, 0, 1), ints(0, 1, 2)))
    for i, sequence in enumerate(sequences):
        alone = Context(model).eval(sequence, 0, logits="all")[-3:]
        np.testing.assert_allclose(np.stack([step[i] for step in logits]), alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_output_rows_choose_logits(model: Model) -> None:
    tokens, positions, slots = random_tokens(9), np.arange(9, dtype=np.int32), np.zeros(9, np.int32)
    every = Context(model).forward(tokens, positions, slots, positions)
    some = Context(model).forward(tokens, positions, slots, ints(2, 7))
    np.testing.assert_allclose(some, every[[2, 7]], rtol=0, atol=1e-5 * np.abs(every).max())
    assert Context(model).forward(tokens, positions, slots, ints()).shape == (0, VOCAB)
    assert Context(model).eval(tokens, 0, logits="none").shape == (0,)


def test_hidden_states_give_the_logits(f32_path: Path) -> None:
    model = Model(str(f32_path), precision="f32")
    tokens, positions, slots = random_tokens(9), np.arange(9, dtype=np.int32), np.zeros(9, np.int32)
    hidden = Context(model).embed(tokens, positions, slots, ints(3, 8))
    logits = Context(model).forward(tokens, positions, slots, ints(3, 8))
    np.testing.assert_allclose(hidden @ model.file.dequantize("token_embd.weight").T, logits, rtol=0, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_do_not_change_results(packed_path: Path, threads: int) -> None:
    tokens = random_tokens(33)
    one = Context(Model(str(packed_path), threads=1)).eval(tokens, 0, logits="all")
    model = Model(str(packed_path), threads=threads)
    assert f"{min(threads, cpu_count())} thread" in model.backend  # more would only wait for each other
    np.testing.assert_allclose(Context(model).eval(tokens, 0, logits="all"), one, rtol=0, atol=1e-5 * np.abs(one).max())


def test_threads_can_change_between_passes(model: Model) -> None:
    tokens, context = random_tokens(20), Context(model)
    before = context.eval(tokens, 0)
    for decode, prompt in ((3, 1), (1, 4), (2, 2), (0, 0)):
        context.set_threads(decode, prompt)
        context.eval(tokens[:-1], 0, logits="none")
        np.testing.assert_allclose(context.eval(tokens[-1:], 19), before, rtol=0, atol=1e-5 * np.abs(before).max())


def test_long_contexts_are_cut_over_threads(tmp_path: Path) -> None:
    """Decoding at position 900 with several threads cuts the cache into ranges and merges them."""
    config = {**CONFIG, "max_position_embeddings": 1024}
    path = convert(save_llama(tmp_path / "hf", config, llama_tensors(config)), tmp_path / "long.gguf", "--outtype", "f32")
    tokens = random_tokens(900)
    rows = []
    for threads in (1, 4):
        context = Context(Model(str(path), threads=threads, precision="f32"))
        context.eval(tokens[:-1], 0, logits="none")
        rows.append(context.eval(tokens[-1:], 899))
    np.testing.assert_allclose(rows[1], rows[0], rtol=0, atol=1e-5 * np.abs(rows[0]).max())


@pytest.mark.parametrize("device", ["cpu*1,cpu", "cpu*2,cpu*1", "cpu*1,cpu:0*1,cpu*1", "cpu,cpu*99", "cpu*0,cpu"])
def test_layers_over_several_devices(f32_path: Path, packed_path: Path, device: str) -> None:
    """Two CPU backends stand in for CPU and GPU: the rows cross between them."""
    tokens, rows = random_tokens(20), ints(4, 19)
    for path in (f32_path, packed_path):
        whole, split = Model(str(path)), Model(str(path), device=device, threads=1)
        assert split.parameters == whole.parameters and split.weight_bytes == whole.weight_bytes
        one, several = Context(whole, n_slots=2), Context(split, n_slots=2)
        expected = one.eval(tokens, 0, logits="all")
        bound = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(several.eval(tokens, 0, logits="all"), expected, rtol=0, atol=bound)
        several.load(1, several.save(0, 12))
        np.testing.assert_allclose(several.eval(tokens[12:], 12, slot=1, logits="all"), expected[12:], rtol=0, atol=bound)
        batch = (tokens, np.arange(20, dtype=np.int32), np.zeros(20, np.int32), rows)
        hidden = one.embed(*batch)
        np.testing.assert_allclose(several.embed(*batch), hidden, rtol=0, atol=1e-5 * np.abs(hidden).max())
        assert several.memory_bytes >= one.memory_bytes
    several.set_threads(2, 2)
    assert split.backend.count("2 threads") == split.backend.count("cpu (")


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("", 'device: "" is not like'),
        ("cpu,", "is not like"),
        ("cpu*", "is not like"),
        ("cpu*-1", "is not like"),
        ("cpu:x", "is not like"),
        ("cpu*1", "leaves 2 of 3 layers out"),
        ("cpu,cpu", "several parts without"),
    ],
)
def test_bad_devices_are_refused(f32_path: Path, device: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Model(str(f32_path), device=device)


# --- precision


def test_int8_activations_stay_within_their_rounding(packed_path: Path) -> None:
    """One linear layer's relative error from int8 activations is (s / sqrt(12)) / rms(x'), s = max|x'| / 127. A rotated row of n <= 80
    values has max <= sqrt(n) rms <= 9 rms, so it is below 9 / 127 / 3.46 = 0.0205. 3 layers x 4 products in sequence, errors
    independent, no gain by the residual stream: sqrt(12) * 0.0205 = 0.071 of the logits' rms; twice that is allowed."""
    tokens = random_tokens(48)
    exact = Context(Model(str(packed_path), precision="f32")).eval(tokens, 0, logits="all")
    rounded = Context(Model(str(packed_path), precision="int8")).eval(tokens, 0, logits="all")
    error = np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < 0.142


def test_float_path_equals_the_dequantized_model(packed_path: Path, tmp_path: Path) -> None:
    packed = Model(str(packed_path), precision="f32")
    dense = LayerRunner(Model(str(packed_path), precision="f32"), 16)
    for name in packed.file.quantized():
        dense.set_matrix(name, packed.file.dequantize(name))
    tokens = random_tokens(16)
    hidden = dense.embed(tokens[None])
    for layer in range(CONFIG["num_hidden_layers"]):
        hidden = dense.layer(layer, hidden)
    expected = Context(packed).eval(tokens, 0, logits="all")
    np.testing.assert_allclose(dense.head(hidden[0]), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def transformers_llama(path: Path) -> Any:
    """A GGUF file of a llama as transformers' model, built here from gguf's own dequantization."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    reader = gguf.GGUFReader(path)
    key = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
    names |= {f"attn_{n}": f"self_attn.{n}_proj" for n in "qkv"} | {f"ffn_{n}": f"mlp.{n}_proj" for n in ("gate", "up", "down")}
    state = {}
    for tensor in reader.tensors:
        w = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        if not tensor.name.startswith("blk."):
            state[{"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[tensor.name]] = w
            continue
        _, layer, kind, _ = tensor.name.split(".")
        if kind in ("attn_q", "attn_k"):  # neighbours back to halves of a head
            heads = key["llama.attention.head_count" if kind == "attn_q" else "llama.attention.head_count_kv"]
            w = w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        state[f"model.layers.{layer}.{names[kind]}.weight"] = w
    config = transformers.LlamaConfig(
        hidden_size=key["llama.embedding_length"],
        intermediate_size=key["llama.feed_forward_length"],
        num_hidden_layers=key["llama.block_count"],
        num_attention_heads=key["llama.attention.head_count"],
        num_key_value_heads=key["llama.attention.head_count_kv"],
        rms_norm_eps=key["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": key["llama.rope.freq_base"]},
        vocab_size=len(state["model.embed_tokens.weight"]),
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def test_smollm2_logits_equal_transformers(smollm2_gguf: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = convert(smollm2_gguf, tmp_path / "smollm2.gguf", "--outtype", "f32")
    text = "".join(f"In {1900 + i} the committee of {i + 3} towns met by the river, and {i * i} people came.\n" for i in range(12))
    with Llama(str(path), verbose=False) as llm:
        tokens = np.array(llm.tokenize(text.encode())[:200], np.int32)
    assert len(tokens) == 200
    with torch.no_grad():
        expected = transformers_llama(smollm2_gguf)(torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()
    found = Context(Model(str(path), precision="f32"), n_ctx=256).eval(tokens, 0, logits="all")
    assert np.abs(found - expected).max() <= 2e-3


# --- states


def test_saved_states_continue(model: Model) -> None:
    tokens = random_tokens(24)
    whole = Context(model).eval(tokens, 0, logits="all")
    first = Context(model, n_slots=2)
    first.eval(tokens[:15], 0, slot=1, logits="none")
    second = Context(model, n_ctx=32)
    second.load(0, first.save(1, 15))
    np.testing.assert_allclose(second.eval(tokens[15:], 15, logits="all"), whole[15:], rtol=0, atol=1e-5 * np.abs(whole).max())


def test_copied_slots_share_a_prefix(model: Model) -> None:
    tokens, other = random_tokens(20), random_tokens(6, seed=9)
    context = Context(model, n_slots=2)
    context.eval(tokens, 0, slot=0, logits="none")
    context.copy_slot(0, 1, 12)
    branch = context.eval(other, 12, slot=1)
    alone = Context(model).eval(np.concatenate([tokens[:12], other]), 0)
    np.testing.assert_allclose(branch, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_bad_states_are_refused(model: Model) -> None:
    context = Context(model, n_ctx=32)
    context.eval(random_tokens(10), 0, logits="none")
    state = context.save(0, 10)
    with pytest.raises(ValueError, match="holds 10 positions, not 11"):
        context.save(0, 11)
    for damaged, text in (
        (b"", "0 bytes"),
        (b"X" + state[1:], "not a saved state"),
        (state[:-1], "bytes, expected"),
        (state + b"\0", "bytes, expected"),
        (state[:7] + b"1" + state[8:], "version 1, this release reads version 4"),
        (state[:8] + b"\x07" + state[9:], "tiles of 7 positions, this release has tiles of 64"),
        (state[:12] + b"\x07" + state[13:], "codes of version 7, this release has version 1"),
        (state[:16] + b"\x07" + state[17:], "another model"),
        (state[:24] + (2**40).to_bytes(8, "little") + state[32:], "1099511627776 positions"),
        (state[:24] + (2**64 - 1).to_bytes(8, "little") + state[32:], "-1 positions"),
        (state[:40] + b"\x07" + state[41:], "layer 0 has 7 heads of keys, here"),
        (state[:48] + b"\x07" + state[49:], "type 7 of cached numbers is unknown"),
    ):
        with pytest.raises(FormatError, match=text):
            context.load(0, damaged)
    with pytest.raises(FormatError, match="do not fit n_ctx 8"):
        Context(model, n_ctx=8).load(0, state)


# --- arguments


@pytest.mark.parametrize(
    ("tokens", "positions", "slots", "rows", "text"),
    [
        ([], [], [], [], "a batch of 0 rows"),
        ([1] * 9, list(range(9)), [0] * 9, [], "n_batch is 8"),
        ([1, 2], [0], [0, 0], [], "differ in length"),
        ([1, VOCAB], [0, 1], [0, 0], [], f"row 1: token {VOCAB}"),
        ([-1], [0], [0], [], "token -1"),
        ([1], [0], [2], [], "slot 2 is not in 0 .. 1"),
        ([1], [0], [-1], [], "slot -1"),
        ([1], [64], [0], [], "position 64 is not in 0 .. 63"),
        ([1], [-1], [0], [], "position -1"),
        ([1], [1], [0], [], "position 1 does not follow the 0 positions of slot 0"),
        ([1, 2], [0, 2], [0, 0], [], "position 2 does not follow the 1"),
        ([1, 2], [0, 0], [0, 0], [], "position 0 does not follow"),
        ([1, 2], [0, 1], [0, 0], [2], "output row 2"),
        ([1, 2], [0, 1], [0, 0], [1, 0], "output row 0"),
        ([1, 2], [0, 1], [0, 0], [-1], "output row -1"),
    ],
)
def test_bad_batches_are_refused(
    f32_path: Path, tokens: list[int], positions: list[int], slots: list[int], rows: list[int], text: str
) -> None:
    context = Context(Model(str(f32_path)), n_slots=2, n_batch=8)
    arguments = [np.array(values, np.int32) for values in (tokens, positions, slots, rows)]
    for method in (context.forward, context.embed):
        with pytest.raises(ValueError, match=text):
            method(*arguments)


def test_bad_options_are_refused(f32_path: Path, tmp_path: Path) -> None:
    model = Model(str(f32_path))
    for options in ({"n_ctx": -1}, {"n_slots": 0}, {"n_batch": 0}, {"n_ctx": 2**40}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Context(model, **options)
    with pytest.raises(MemoryError, match="too large"):
        Context(model, n_ctx=2**31 - 1, n_slots=2**31 - 1)
    with pytest.raises(ValueError, match='precision: "int4"'):
        Model(str(f32_path), precision="int4")
    with pytest.raises(ValueError, match='device: "tpu"'):
        Model(str(f32_path), device="tpu")
    with pytest.raises(ValueError, match="threads: -1"):
        Model(str(f32_path), threads=-1)
    with pytest.raises(OSError, match=r"missing\.gguf"):
        Model(str(tmp_path / "missing.gguf"))
    with pytest.raises(ValueError, match="do not fit n_ctx 64"):
        Context(model).eval(random_tokens(65), 0)
    with pytest.raises(ValueError, match='logits: "some"'):
        Context(model).eval(random_tokens(3), 0, logits="some")
    with pytest.raises(TypeError):
        Context(model).eval(np.zeros(3, np.int64), 0)


# --- files


def tiny_gguf(path: Path, change: Any = None, keys: dict[str, Any] | None = None, arch: str = "llama") -> Path:
    tensors = llama_tensors(CONFIG)
    if change:
        change(tensors)
    return write_gguf(path, arch, CONFIG, tensors, keys)


def test_missing_tensors_are_listed_at_once(tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.layers.2.input_layernorm.weight"]

    with pytest.raises(FormatError, match=r"missing tensors: output_norm.weight, blk.1.ffn_up.weight, blk.2.attn_norm.weight$"):
        Model(str(tiny_gguf(tmp_path / "m.gguf", change)))


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((79, 48), np.float32)

    with pytest.raises(FormatError, match=r"blk.1.ffn_up.weight has the shape \(79, 48\), expected \(80, 48\)"):
        Model(str(tiny_gguf(tmp_path / "m.gguf", change)))


def test_values_that_make_no_sense_are_named(tmp_path: Path) -> None:
    cases = {
        "attention.key_length": (0, FormatError),
        "rope.dimension_count": (13, FormatError),
        "attention.value_length": (4, UnsupportedError),
        "rope.scaling.type": ("dynamic", UnsupportedError),
        "expert_count": (5000, FormatError),
    }
    for key, (value, error) in cases.items():
        with pytest.raises(error, match=key):
            Model(str(tiny_gguf(tmp_path / "m.gguf", keys={key: value})))


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    config = {**CONFIG, "hidden_size": 64, "intermediate_size": 96}
    q8 = gguf.GGMLQuantizationType.Q8_0
    quantized = write_gguf(tmp_path / "q8.gguf", "llama", config, llama_tensors(config), qtype=q8)
    with pytest.raises(UnsupportedError, match="convert the file first"):
        Model(str(quantized))
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match=r'"mamba" is not supported .*llama'):
        Model(str(tmp_path / "other.gguf"))


# --- closing


def test_close_waits_for_a_running_pass(f32_path: Path) -> None:
    model = Model(str(f32_path))
    for _ in range(10):
        context = Context(model)
        outcomes: list[str] = []

        def work(context: Context = context, outcomes: list[str] = outcomes) -> None:
            try:
                while True:
                    assert np.isfinite(context.eval(random_tokens(60), 0)).all()
                    outcomes.append("pass")
            except RuntimeError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        while "pass" not in outcomes:
            pass
        context.close()
        for thread in threads:
            thread.join()
        assert Counter(outcomes)["the context is closed"] == 3
    context.close()  # again: nothing happens
    with pytest.raises(RuntimeError, match="the context is closed"):
        context.save(0, 0)


def test_contexts_outlive_their_model(f32_path: Path) -> None:
    model = Model(str(f32_path))
    context = Context(model)
    before = context.eval(random_tokens(5), 0)
    model.close()
    with pytest.raises(RuntimeError, match="the model is closed"):
        Context(model)
    with pytest.raises(RuntimeError, match="the model is closed"):
        _ = model.file
    np.testing.assert_array_equal(context.eval(random_tokens(5), 0), before)


def test_one_model_from_many_threads(model: Model) -> None:
    sequences = [random_tokens(30, seed) for seed in range(4)]
    expected = [Context(model).eval(sequence, 0) for sequence in sequences]
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        context = Context(model)
        for _ in range(5):
            found[i] = context.eval(sequences[i], 0)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, logits in enumerate(expected):
        np.testing.assert_allclose(found[i], logits, rtol=0, atol=1e-5 * np.abs(logits).max())


def test_what_a_model_says_of_itself(f32_path: Path, packed_path: Path) -> None:
    dense, packed = Model(str(f32_path)), Model(str(packed_path))
    assert dense.config["architecture"] == "llama" and dense.config["n_vocab"] == VOCAB
    assert dense.parameters == packed.parameters == sum(w.size for w in llama_tensors(CONFIG).values())
    assert dense.weight_bytes == 4 * sum(w.size for w in llama_tensors(CONFIG).values() if w.ndim == 2)  # tied: the embedding is read too
    assert packed.weight_bytes < dense.weight_bytes / 4
    assert Context(dense, n_ctx=64).memory_bytes > 0
    assert backends()["cpu"].startswith("available") and cpu_count() >= 1


def test_profile_counts_the_time_of_passes(model: Model) -> None:
    context = Context(model)
    context.eval(random_tokens(8), 0)
    assert context.profile(True) == {}
    context.eval(random_tokens(8), 0)
    seconds = context.profile(False)
    kinds = {"embedding", "linear", "attention", "norms", "output", "barrier"}
    assert kinds <= set(seconds) <= kinds | {"rotation"} and all(value > 0 for value in seconds.values())
    assert context.profile(True) == {}
    context.eval_best(random_tokens(8), 0)
    assert context.profile(False)["sampler"] > 0
    context.eval(random_tokens(8), 0)
    assert context.profile(False) == {}

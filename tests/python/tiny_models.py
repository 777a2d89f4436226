"""Tiny models: Hugging Face folders written without torch, and GGUF files in llama.cpp's conventions made of any such folder."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 320,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
THREE_LAYERS = {**LLAMA, "num_hidden_layers": 3}
TEXT = "The quick brown fox jumps over the lazy dog, 12345 times! Naïve café. 我想在apple工作1314151天 🚀\n\n  def f(x):\n\treturn x ** 2\n"


def llama_tensors(config: dict[str, Any] = LLAMA, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a llama under Hugging Face's names."""
    rng = np.random.default_rng(seed)
    d, ff, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, d)
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes |= {p + "input_layernorm.weight": (d,), p + "post_attention_layernorm.weight": (d,)}
        shapes |= {p + f"self_attn.{n}_proj.weight": s for n, s in {"q": (d, d), "k": (kv, d), "v": (kv, d), "o": (d, d)}.items()}
        shapes |= {p + f"mlp.{n}_proj.weight": s for n, s in {"gate": (ff, d), "up": (ff, d), "down": (d, ff)}.items()}
    return {name: rng.standard_normal(shape).astype(np.float32) * 0.2 for name, shape in shapes.items()}


def train_bpe(vocab_size: int = 320) -> Tokenizer:
    """A byte-level BPE tokenizer with three control tokens, trained on TEXT."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return tokenizer


def save_llama(folder: Path, config: dict[str, Any] = LLAMA, tensors: dict[str, np.ndarray] | None = None, shards: int = 1) -> Path:
    """A complete folder: config, weights in `shards` files, tokenizer, chat template, generation config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = llama_tensors(config) if tensors is None else tensors
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        for i, file in enumerate(files):
            save_file({name: tensors[name] for name in names[i::shards]}, folder / file)
        weight_map = {name: files[i % shards] for i, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    train_bpe(config["vocab_size"]).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return folder


# --- GGUF in llama.cpp's conventions, written here independently of the converter


def _neighbours(n_rows: int, n_heads: int) -> np.ndarray:
    """Row order of llama.cpp's q and k: dimensions i and i + half of a head become neighbours."""
    head = n_rows // n_heads
    order = [h * head + i + half * (head // 2) for h in range(n_heads) for i in range(head // 2) for half in (0, 1)]
    return np.array(order)


def _gguf_tensors(arch: str, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    known = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[arch], config["num_hidden_layers"])
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    out: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    parts = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "down_proj": "down", "up_proj": "up"}
    for name, w in tensors.items():
        if arch == "gpt-oss" and ".experts." in name:
            out |= _gpt_oss_experts(name, w)
            continue
        if arch == "gemma4" and (".experts." in name or ".router." in name):
            out |= _gemma4_experts(name, w)
            continue
        if ".experts." in name:
            layer, expert, part = name.split(".")[2], int(name.split(".")[5]), parts[name.split(".")[6]]
            stacks.setdefault(f"blk.{layer}.ffn_{part}_exps.weight", {})[expert] = w
            continue
        name += ".weight" if name.endswith((".sinks", ".layer_scalar")) else ""
        target = names.get_name(name.replace(".dt_bias", ".dt_proj.bias"), try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        kind = target.split(".")[2] if target.startswith("blk.") else ""
        if arch in ("llama", "granite", "smollm3", "mistral3") and kind in heads:
            w = w[_neighbours(w.shape[0], heads[kind])]
        if arch in ("qwen35", "qwen35moe", "qwen3next"):
            w = _delta_net_tensor(arch, config, target, w)
        if arch in ("gemma", "gemma2", "gemma3") and target.endswith("norm.weight"):
            w = w + 1
        out[target] = w[0] if kind == "ffn_gate_inp_shexp" else w
    return out | {name: np.stack([stack[e] for e in sorted(stack)]) for name, stack in stacks.items()}


def _gemma4_experts(name: str, w: np.ndarray) -> dict[str, np.ndarray]:
    layer, kind = name.split(".")[2], name.split(".", 3)[3]
    names = {
        "router.proj.weight": "ffn_gate_inp.weight",
        "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale",
    }
    names |= {"experts.gate_up_proj": "ffn_gate_up_exps.weight", "experts.down_proj": "ffn_down_exps.weight"}
    return {f"blk.{layer}.{names[kind]}": w}


def _gpt_oss_experts(name: str, w: np.ndarray) -> dict[str, np.ndarray]:
    """gate and up apart, matrices (experts, outputs, inputs)."""
    layer, kind = name.split(".")[2], "bias" if name.endswith("_bias") else "weight"
    w = w if kind == "bias" else w.transpose(0, 2, 1)
    parts = {"down": w} if ".down_proj" in name else {"gate": w[:, 0::2], "up": w[:, 1::2]}
    return {f"blk.{layer}.ffn_{part}_exps.{kind}": np.ascontiguousarray(each) for part, each in parts.items()}


def _delta_net_tensor(arch: str, config: dict[str, Any], target: str, w: np.ndarray) -> np.ndarray:
    """Decay rates negative, norms with their 1, convolutions flat, and in qwen35 the i-th value heads of all key heads side by side."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    key_dim, value_dim = config["linear_key_head_dim"], config["linear_value_head_dim"]
    kind = target.split(".", 2)[-1]
    if kind == "ssm_a":
        w = -np.exp(w)
    elif target.endswith("norm.weight") and kind != "ssm_norm.weight":
        w = w + 1
    elif kind == "ssm_conv1d.weight":
        w = w[:, 0]
    if arch == "qwen3next":
        return w
    order = [key * (values // keys) + i for i in range(values // keys) for key in range(keys)]
    rows = np.array([head * value_dim + d for head in order for d in range(value_dim)])
    if kind in ("ssm_a", "ssm_dt.bias", "ssm_alpha.weight", "ssm_beta.weight"):
        return w[order]
    if kind == "attn_gate.weight":
        return w[rows]
    if kind in ("attn_qkv.weight", "ssm_conv1d.weight"):
        return np.concatenate([w[: 2 * keys * key_dim], w[2 * keys * key_dim :][rows]])
    return w[:, rows] if kind == "ssm_out.weight" else w


def _gguf_keys(arch: str, config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    keys = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
    }
    return {"general.name": "tiny", **{f"{arch}.{key}": value for key, value in keys.items()}}


def write_gguf(
    path: Path,
    arch: str,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    keys: dict[str, Any] | None = None,
    extra_tensors: dict[str, np.ndarray] | None = None,
    qtype: gguf.GGMLQuantizationType | None = None,
) -> Path:
    """A GGUF file of a Hugging Face model, with llama.cpp's keys, names and conventions; `keys`, added or put in place of these, stand
    under the architecture's name unless they have a prefix of their own."""
    own = {key if key.startswith(("tokenizer.", "split.")) else f"{arch}.{key}": value for key, value in (keys or {}).items()}
    writer = gguf.GGUFWriter(path, arch)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    for key, value in {**_gguf_keys(arch, config), **own}.items():
        add[type(value)](key, value)
    for name, w in {**_gguf_tensors(arch, config, tensors), **(extra_tensors or {})}.items():
        if qtype is not None and w.ndim > 1:
            writer.add_tensor(name, gguf.quantize(w, qtype), raw_dtype=qtype)
        else:
            writer.add_tensor(name, w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tokenizer_keys(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    """tokenizer.ggml.* of a byte-level BPE tokenizer."""
    description = json.loads(tokenizer.to_str())
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = {entry["id"] for entry in description["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [text for text, _ in vocab],
        "tokenizer.ggml.token_type": [3 if i in special else 1 for _, i in vocab],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in description["model"]["merges"]],
    }

"""The sizes of known models: every tensor that a file of such a model has, and its metadata."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The sizes of a model of the llama or qwen2 architecture."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocab: int
    architecture: str = "llama"
    tied: bool = True
    rope_base: float = 500000.0
    qkv_bias: bool = False

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """(name, n_out, n_in) of every matrix."""
        yield "token_embd.weight", self.n_vocab, self.n_embd
        if not self.tied:
            yield "output.weight", self.n_vocab, self.n_embd
        for layer in range(self.n_layers):
            yield from self.mixer_matrices(layer)
            yield from self.feed_forward_matrices(f"blk.{layer}.ffn_")

    def mixer_matrices(self, layer: int) -> Iterator[tuple[str, int, int]]:
        """Those of a layer's attention."""
        prefix, q_width, kv_width = f"blk.{layer}.attn_", self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        yield prefix + "q.weight", q_width, self.n_embd
        yield prefix + "k.weight", kv_width, self.n_embd
        yield prefix + "v.weight", kv_width, self.n_embd
        yield prefix + "output.weight", self.n_embd, q_width

    def feed_forward_matrices(self, prefix: str) -> Iterator[tuple[str, int, int]]:
        """Those of a layer's feed-forward part."""
        yield prefix + "gate.weight", self.n_ff, self.n_embd
        yield prefix + "up.weight", self.n_ff, self.n_embd
        yield prefix + "down.weight", self.n_embd, self.n_ff

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], float]]:
        """(name, shape, value of all elements) of what stays unpacked: norms, biases."""
        yield "output_norm.weight", (self.n_embd,), 1.0
        for layer in range(self.n_layers):
            yield from self.layer_tensors(layer)

    def layer_tensors(self, layer: int) -> Iterator[tuple[str, tuple[int, ...], float]]:
        """Those of a layer."""
        prefix = f"blk.{layer}."
        yield prefix + "attn_norm.weight", (self.n_embd,), 1.0
        yield prefix + "ffn_norm.weight", (self.n_embd,), 1.0
        if self.qkv_bias:
            yield prefix + "attn_q.bias", (self.n_heads * self.head_dim,), 0.0
            yield prefix + "attn_k.bias", (self.n_kv_heads * self.head_dim,), 0.0
            yield prefix + "attn_v.bias", (self.n_kv_heads * self.head_dim,), 0.0

    def routers(self) -> Iterator[tuple[str, int, int]]:
        """(name, n_out, n_in) of matrices that stay unpacked and must differ by row: a router of equal rows would use the same experts for
        every token."""
        return iter(())

    def state_bytes(self) -> int:
        """Bytes of recurrent states that one token reads and writes."""
        return 0

    def keys(self) -> dict[str, Any]:
        """The file's keys, without the architecture's name before them."""
        return {
            "block_count": self.n_layers,
            "context_length": 131072,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.n_ff,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": self.rope_base,
            "rope.dimension_count": self.head_dim,
            "vocab_size": self.n_vocab,
        }

    def metadata(self) -> dict[str, Any]:
        """The file's keys under the architecture's name."""
        return {f"{self.architecture}.{key}": value for key, value in self.keys().items()}


@dataclass(frozen=True)
class RecurrentShape(Shape):
    """Qwen 3.5, dense: gated delta nets, and an attention with an output gate as every `interval`-th layer (0: none)."""

    architecture: str = "qwen35"
    rope_base: float = 1e7
    rope_dims: int = 64
    n_key_heads: int = 16
    n_value_heads: int = 16
    state_dim: int = 128
    """Elements of a key and of a value."""
    taps: int = 4
    interval: int = 4

    def is_recurrent(self, layer: int) -> bool:
        """Whether a layer is a delta net."""
        return self.interval == 0 or (layer + 1) % self.interval != 0

    @property
    def value_width(self) -> int:
        """Elements of all value heads."""
        return self.n_value_heads * self.state_dim

    @property
    def conv_width(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.n_key_heads * self.state_dim + self.value_width

    def state_bytes(self) -> int:
        """Bytes that one token reads and writes of the states of all layers."""
        floats = 2 * self.value_width * self.state_dim + self.taps * self.conv_width
        return 4 * floats * sum(map(self.is_recurrent, range(self.n_layers)))

    def mixer_matrices(self, layer: int) -> Iterator[tuple[str, int, int]]:
        """Those of a layer's delta net or attention."""
        prefix = f"blk.{layer}."
        if not self.is_recurrent(layer):
            yield from super().mixer_matrices(layer)
            yield prefix + "attn_gate.weight", self.n_heads * self.head_dim, self.n_embd
            return
        yield prefix + "attn_qkv.weight", self.conv_width, self.n_embd
        yield prefix + "attn_gate.weight", self.value_width, self.n_embd
        yield prefix + "ssm_out.weight", self.n_embd, self.value_width

    def layer_tensors(self, layer: int) -> Iterator[tuple[str, tuple[int, ...], float]]:
        """Those of a layer."""
        yield from super().layer_tensors(layer)
        prefix = f"blk.{layer}."
        if not self.is_recurrent(layer):
            yield prefix + "attn_q_norm.weight", (self.head_dim,), 1.0
            yield prefix + "attn_k_norm.weight", (self.head_dim,), 1.0
            return
        yield prefix + "ssm_alpha.weight", (self.n_value_heads, self.n_embd), 0.01
        yield prefix + "ssm_beta.weight", (self.n_value_heads, self.n_embd), 0.01
        yield prefix + "ssm_conv1d.weight", (self.conv_width, self.taps), 0.5
        yield prefix + "ssm_a", (self.n_value_heads,), -0.1
        yield prefix + "ssm_dt.bias", (self.n_value_heads,), 0.5
        yield prefix + "ssm_norm.weight", (self.state_dim,), 1.0

    def keys(self) -> dict[str, Any]:
        """The file's keys, without the architecture's name before them."""
        return super().keys() | {
            "rope.dimension_count": self.rope_dims,
            "ssm.conv_kernel": self.taps,
            "ssm.state_size": self.state_dim,
            "ssm.group_count": self.n_key_heads,
            "ssm.time_step_rank": self.n_value_heads,
            "ssm.inner_size": self.value_width,
            "attention.recurrent_layers": [self.is_recurrent(layer) for layer in range(self.n_layers)],
        }

    def recurrent_layers_alone(self) -> "RecurrentShape":
        """As many delta nets as the shape has, no attention, hardly a vocabulary: what recurrent layers cost by themselves."""
        return replace(self, n_layers=sum(map(self.is_recurrent, range(self.n_layers))), interval=0, n_vocab=256, tied=True)


@dataclass(frozen=True)
class GptOssShape(Shape):
    """gpt-oss: sinks, windows in every second layer, experts with biases."""

    architecture: str = "gpt-oss"
    tied: bool = False
    rope_base: float = 150000.0
    qkv_bias: bool = True
    n_experts: int = 32
    n_used: int = 4

    def feed_forward_matrices(self, prefix: str) -> Iterator[tuple[str, int, int]]:
        """Those of all experts of a layer."""
        for expert in range(self.n_experts):
            for name, n_out, n_in in super().feed_forward_matrices(prefix):
                yield name.replace(".weight", f".{expert}.weight"), n_out, n_in

    def layer_tensors(self, layer: int) -> Iterator[tuple[str, tuple[int, ...], float]]:
        """Those of a layer."""
        yield from super().layer_tensors(layer)
        prefix, experts = f"blk.{layer}.", self.n_experts
        yield prefix + "attn_output.bias", (self.n_embd,), 0.0
        yield prefix + "attn_sinks.weight", (self.n_heads,), 0.0
        yield prefix + "ffn_gate_inp.bias", (experts,), 0.0
        yield prefix + "ffn_gate_exps.bias", (experts, self.n_ff), 0.0
        yield prefix + "ffn_up_exps.bias", (experts, self.n_ff), 0.0
        yield prefix + "ffn_down_exps.bias", (experts, self.n_embd), 0.0

    def routers(self) -> Iterator[tuple[str, int, int]]:
        """Those of all layers."""
        for layer in range(self.n_layers):
            yield f"blk.{layer}.ffn_gate_inp.weight", self.n_experts, self.n_embd

    def keys(self) -> dict[str, Any]:
        """The file's keys, without the architecture's name before them."""
        return super().keys() | {
            "expert_count": self.n_experts,
            "expert_used_count": self.n_used,
            "expert_feed_forward_length": self.n_ff,
            "attention.sliding_window": 128,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
        }


SHAPES: dict[str, Shape] = {
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 64, 49152, rope_base=100000.0),
    "qwen2.5-0.5b": Shape(24, 896, 4864, 14, 2, 64, 151936, architecture="qwen2", rope_base=1000000.0, qkv_bias=True),
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256),
    "llama-3.2-3b": Shape(28, 3072, 8192, 24, 8, 128, 128256),
    "llama-3.1-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, tied=False),
    "qwen3.5-0.8b": RecurrentShape(24, 1024, 3584, 8, 2, 256, 248320),
    "qwen3.5-9b": RecurrentShape(32, 4096, 12288, 16, 4, 256, 248320, tied=False, n_value_heads=32),
    "gpt-oss-20b": GptOssShape(24, 2880, 2880, 64, 8, 64, 201088),
}

"""The engine's operations in PyTorch, one for one, so that what is differentiated is what the engine computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .. import _core
from . import elementwise
from .weights import Weights

Tap = Callable[[str, torch.Tensor], None]
Planes = dict[str, torch.Tensor]  # (windows, positions, width), by the engine's names


class Network:
    """A model: the operations of its graph over some weights.

    Args:
        model: whose graph it is; on one device.
        weights: of that model, or of another with the same tensors' names and shapes.
        n_ctx: positions of a window, at most.
        dtype: of the inputs of products; the residual stream and all norms are float32.
        saves_memory: computes each layer's inner values again on the way back instead of keeping them.

    Attributes:
        device: where it computes.
        n_vocab, n_layers: of the model.
    """

    def __init__(self, model: _core.Model, weights: Weights, n_ctx: int, dtype: torch.dtype, saves_memory: bool = False) -> None:
        self.weights, self._dtype, self._saves_memory = weights, dtype, saves_memory
        self._parts = _core.graph(model, n_ctx)
        self._turns: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.device = next(iter(weights.vectors.values())).stored.device
        self.n_vocab, self.n_layers = int(model.config["n_vocab"]), len(self._parts) - 2
        self._tap: Tap | None = None
        self._rms_norm = elementwise.for_device(elementwise.rms_norm, self.device)
        self._activated = elementwise.for_device(elementwise.activated, self.device)
        self._turn = elementwise.for_device(elementwise.turned, self.device)

    @property
    def is_static(self) -> bool:
        """Whether what is computed depends on the tokens' number alone: experts are chosen by their values."""
        return not self._saves_memory and all(op["op"] != "moe" for part in self._parts for op in part)

    def readers(self, layer: int) -> list[tuple[str, bool]]:
        """The layer's matrices in the order of the computation, and whether they read the residual stream."""
        found: list[tuple[str, bool]] = []
        for op in self._parts[layer + 1]:
            if op["op"] == "linear":
                found += [(out["matrix"], op["in"]["x"] == "x") for out in op["out"]]
            elif op["op"] == "moe":
                reads = [op["router"], *op["gate"], *op["up"], op["shared_router"], op["shared_gate"], op["shared_up"]]
                found += [(name, True) for name in reads if name is not None]
                found += [(name, False) for name in [*op["down"], op["shared_down"]] if name is not None]
        return found

    @contextmanager
    def tapped(self, tap: Tap) -> Iterator[None]:
        """Shows `tap` what each matrix multiplies, (..., n_in), by the matrix's name."""
        self._tap = tap
        try:
            yield
        finally:
            self._tap = None

    def _product(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if self._tap is not None:
            self._tap(name, x)
        return self.weights.matrices[name].product(x)

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """(windows, positions) -> (windows, positions, n_embd) float32: the residual stream behind the last layer."""
        planes: Planes = {}
        for op in self._parts[0]:
            planes[op["y"]] = op["scale"] * self.weights.matrices[op["matrix"]].rows(tokens)
        x = planes["x"]
        for ops in self._parts[1:-1]:
            x = checkpoint(self._layer, ops, x, use_reentrant=False) if self._saves_memory else self._layer(ops, x)
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(windows, positions, n_embd) -> (windows, positions, n_vocab) in the type of products."""
        planes = {"x": hidden}
        self._run(self._parts[-1], planes)
        return planes["logits"]

    def _layer(self, ops: list[dict[str, Any]], x: torch.Tensor) -> torch.Tensor:
        planes = {"x": x}
        self._run(ops, planes)
        return planes["x"]

    def _run(self, ops: list[dict[str, Any]], planes: Planes) -> None:
        for op in ops:
            getattr(self, f"_{op['op']}")(op, planes)

    def _vector(self, name: str) -> torch.Tensor:
        return self.weights.vectors[name].value

    def _input(self, of: dict[str, Any], planes: Planes) -> torch.Tensor:
        x = planes[of["x"]]
        if of["up"] is not None:
            return self._activated(of["activation"], x, planes[of["up"]], self._dtype)
        if of["norm"] is not None:
            return self._rms_norm(x, self._vector(of["norm"]), of["eps"], self._dtype)
        return x.to(self._dtype)

    def _linear(self, op: dict[str, Any], planes: Planes) -> None:
        x = self._input(op["in"], planes)
        for out in op["out"]:
            bias = None if out["bias"] is None else self._vector(out["bias"])
            y = self._with_bias(self._product(out["matrix"], x), bias)
            if out["alpha"] != 1:
                y = y * out["alpha"]
            planes[out["y"]] = planes[out["y"]] + y if out["add"] else y

    def _norm(self, op: dict[str, Any], planes: Planes) -> None:
        x = planes[op["x"]]
        grouped = x.reshape(*x.shape[:-1], op["groups"], -1)
        weight = None if op["weight"] is None else self._vector(op["weight"])
        planes[op["y"]] = self._rms_norm(grouped, weight, op["eps"], torch.float32).reshape(x.shape)

    def _add_norm(self, op: dict[str, Any], planes: Planes) -> None:
        branch = self._rms_norm(planes[op["x"]], self._vector(op["weight"]), op["eps"], torch.float32)
        planes[op["y"]] = op["scale"] * (planes[op["y"]] + op["alpha"] * branch)

    def _soft_cap(self, op: dict[str, Any], planes: Planes) -> None:
        planes[op["x"]] = op["cap"] * torch.tanh(planes[op["x"]].float() / op["cap"])

    # --- attention

    def _attention(self, op: dict[str, Any], planes: Planes) -> None:
        q, k, v = (self._heads(planes[op[name]], op["head_dim"]) for name in "qkv")
        q, k = self._turned(op, q), self._turned(op, k)
        if op["growth_beta"]:
            growth = torch.log1p(torch.arange(q.shape[2], device=q.device) // op["growth_length"])
            q = (q * (1 + op["growth_beta"] * growth)[:, None]).to(self._dtype)
        y = self._attend(op, q, k, v.to(self._dtype))
        planes[op["y"]] = y.transpose(1, 2).reshape(*planes[op["q"]].shape)

    @staticmethod
    def _heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
        """(windows, heads, positions, head_dim)"""
        return x.reshape(*x.shape[:-1], -1, head_dim).transpose(1, 2)

    def _turned(self, op: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
        if len(op["rope_frequencies"]) == 0:
            return x.to(self._dtype)
        return self._turn(x, *self._angles(op, x.shape[2]), op["rope_pairs"], self._dtype)

    def _angles(self, op: dict[str, Any], positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(positions, dims / 2) cosines and sines; layers that turn alike have equal ones, each its own."""
        if (found := self._turns.get(id(op))) is None or len(found[0]) < positions:
            frequencies = torch.from_numpy(op["rope_frequencies"]).double()
            angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies)
            magnitude = op["rope_magnitude"]
            found = ((magnitude * angles.cos()).float().to(self.device), (magnitude * angles.sin()).float().to(self.device))
            self._turns[id(op)] = found
        return found[0][:positions], found[1][:positions]

    def _attend(self, op: dict[str, Any], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """(windows, heads, positions, head_dim) of queries; keys and values may have fewer heads."""
        shared, positions = op["n_heads"] // op["n_kv_heads"], q.shape[2]
        windowed, has_scores = 0 < op["window"] < positions, bool(op["soft_cap"]) or op["sinks"] is not None
        if not windowed and not has_scores:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=op["scale"], enable_gqa=shared > 1)
        if shared > 1:
            k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
        place = torch.arange(positions, device=q.device)
        behind = place[:, None] - place
        seen = (behind >= 0) & (behind < op["window"]) if windowed else behind >= 0
        if not has_scores:
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=op["scale"])
        return self._shares(op, (q @ k.transpose(-1, -2)).float() * op["scale"], seen).to(v.dtype) @ v

    def _shares(self, op: dict[str, Any], scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """(windows, heads, positions, positions) softmax of scores, some of it lost to a head's sink."""
        if op["soft_cap"]:
            scores = op["soft_cap"] * torch.tanh(scores / op["soft_cap"])
        scores = scores.masked_fill(~seen, -torch.inf)
        if op["sinks"] is None:
            return scores.softmax(dim=-1)
        sinks = self._vector(op["sinks"])[:, None, None].expand(*scores.shape[:3], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]

    # --- mixtures of experts

    def _moe(self, op: dict[str, Any], planes: Planes) -> None:
        x = self._input(op["in"], planes)
        rows = x.reshape(-1, x.shape[-1])
        total = torch.zeros_like(planes[op["y"]]).reshape(-1, planes[op["y"]].shape[-1])
        scores = self._product(op["router"], rows.float())
        probabilities = (scores if op["router_bias"] is None else scores + self._vector(op["router_bias"])).softmax(dim=-1)
        weights, experts = (part[:, : op["top_k"]] for part in probabilities.sort(dim=-1, descending=True, stable=True))
        if op["normalize"]:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        biases = [None if op[name] is None else self._vector(op[name]) for name in ("gate_bias", "up_bias", "down_bias")]
        for expert, names in enumerate(zip(op["gate"], op["up"], op["down"], strict=True)):
            row, choice = (experts == expert).nonzero(as_tuple=True)
            if len(row):
                own = [None if bias is None else bias[expert] for bias in biases]
                y = self._gated(names, own, op["activation"], rows[row]).float() * weights[row, choice, None]
                total = total.index_add(0, row, y)
        if op["shared_gate"] is not None:
            y = self._gated((op["shared_gate"], op["shared_up"], op["shared_down"]), [None] * 3, op["activation"], rows).float()
            if op["shared_router"] is not None:
                y = y * self._product(op["shared_router"], rows.float()).sigmoid()
            total = total + y
        planes[op["y"]] = planes[op["y"]] + op["alpha"] * total.reshape(planes[op["y"]].shape)

    def _gated(self, names: tuple[str, str, str], biases: list[torch.Tensor | None], activation: str, x: torch.Tensor) -> torch.Tensor:
        """Of one expert, whose gate, up and down are called so."""
        gate, up = (self._with_bias(self._product(name, x), bias) for name, bias in zip(names[:2], biases[:2], strict=True))
        return self._with_bias(self._product(names[2], self._activated(activation, gate, up, x.dtype)), biases[2])

    @staticmethod
    def _with_bias(y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return y if bias is None else y + bias.to(y.dtype)

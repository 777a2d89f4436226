"""A step's gradients as a CUDA graph: a small model's kernels are shorter than it takes Python to start them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


class Captured:
    """Runs `backward` once as it is and replays what it did, as long as the shape of the tokens and the learned tensors stay.

    Args:
        backward: adds gradients for (windows, seq_len) tokens to what learns, without waiting for the device; returns the loss.
        learned: what learns now.
    """

    def __init__(self, backward: Callable[[torch.Tensor], torch.Tensor], learned: Callable[[], Sequence[torch.Tensor]]) -> None:
        self._backward, self._learned = backward, learned
        self._graph: torch.cuda.CUDAGraph | None = None
        self._tensors: list[torch.Tensor] = []
        self._gradients: list[torch.Tensor | None] = []

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """The loss; every learned tensor has its gradient, in place of any that it had."""
        tensors = list(self._learned())
        same = len(tensors) == len(self._tensors) and all(a is b for a, b in zip(tensors, self._tensors, strict=True))
        if self._graph is None or not same or tokens.shape != self._tokens.shape:
            self._capture(tokens, tensors)
        assert self._graph is not None
        self._tokens.copy_(tokens)
        self._graph.replay()
        for tensor, gradient in zip(self._tensors, self._gradients, strict=True):
            tensor.grad = gradient
        return self._loss

    def _capture(self, tokens: torch.Tensor, tensors: list[torch.Tensor]) -> None:
        self._graph, self._gradients, self._tensors = None, [], tensors
        self._tokens = tokens.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries and compiled kernels set themselves up
            self._clear()
            self._backward(self._tokens)
            self._clear()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._loss = self._backward(self._tokens)
        self._graph, self._gradients = graph, [tensor.grad for tensor in tensors]

    def _clear(self) -> None:
        for tensor in self._tensors:
            tensor.grad = None

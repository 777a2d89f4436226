"""How much each calibration token counts at each input site: the gradient of the model's loss, by PyTorch (extra `[train]`).

An error of a matrix's outputs at a token costs, to second order, in proportion to the square of the loss's gradient there. So a site's
statistics weight the token by it, as GuidedQuant (arXiv:2505.07004) does. The loss is the cross entropy against tokens drawn from the
model's own distribution at each position: the expected squares of its gradients are the Fisher information, the curvature of the KL
divergence.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.errors import ConvertError, listing
from ..common.journal import Journal
from ..convert.sources import Source
from ..convert.sources.huggingface import gguf_tensor_name, tensor_names
from ..evaluate.evaluation import divergence, normalize
from .rounding import Floats
from .text import draw

_BF16_PARAMETERS = 1_000_000_000  # larger models are held in BF16
_AGREEMENT = 0.01  # nats a token by which two implementations of one model may differ


def check_available(source: Source) -> None:
    """ConvertError where gradients cannot be had: no PyTorch, no transformers, or a model that they cannot give them for."""
    for package in ("torch", "transformers"):
        _import(package)
    if source.architecture.is_moe:
        raise ConvertError(
            f"--hessian end-loss: not for mixtures of experts ({source.architecture.model_type}), whose experts see few tokens"
        )
    if len([path for path in source.stored_files() if path.suffix == ".gguf"]) > 1:
        raise ConvertError(f"{source.path}: transformers reads no split GGUF, so --hessian end-loss has no gradients")


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ConvertError(f"--hessian end-loss needs {package}: pip install 'turboquant-native[train]'") from None


def input_sites(model: _core.Model) -> list[_core.InputSite]:
    """The input sites of all layers, in the order of the computation."""
    runner = _core.LayerRunner(model, 1)
    return [site for layer in range(int(model.config["n_layers"])) for site in runner.input_sites(layer)]


class GradientMeter:
    """Measures squared gradients of one model, on its GPU where PyTorch has one.

    Args:
        source: the model; transformers reads it from the same folder or GGUF file.
        seed: of the labels drawn.
        sites: where to measure.
    """

    def __init__(self, source: Source, seed: int, sites: list[_core.InputSite]) -> None:
        self._sites = sites
        self._torch, self._seed, self._n_layers = _import("torch"), seed, int(source.hyperparameters["block_count"])
        self._device = "cuda" if self._torch.cuda.is_available() else "cpu"
        self._network = _load(source, self._torch).to(self._device).eval().requires_grad_(False)
        self._network.enable_input_require_grads()  # so that there is something to differentiate by
        self._squares: Floats = np.zeros(0, np.float32)
        self._watch(source)

    def _watch(self, source: Source) -> None:
        """Gradients of all outputs of the matrices that read a site come by on the way back."""
        names = tensor_names(source.architecture, self._n_layers)
        places = {matrix: place for place, site in enumerate(self._sites) for matrix in site.matrices}
        readers: dict[int, list[Any]] = {}
        for path, module in self._network.named_modules():
            if not isinstance(module, self._torch.nn.Linear):
                continue
            name = gguf_tensor_name(f"{path}.weight", names) or ""
            place = places.get(name.replace("attn_qkv", "attn_q"))  # some implementations have one matrix for all three
            if place is not None:
                readers.setdefault(place, []).append(module)
        if unseen := [site.name for place, site in enumerate(self._sites) if place not in readers]:
            raise ConvertError(f"{source.path}: transformers' {type(self._network).__name__} has no matrices for {listing(unseen, 4)}")
        for place, modules in readers.items():
            for module in modules:
                module.register_forward_hook(self._hook(place, 1 / len(modules)))

    def _hook(self, place: int, share: float) -> Callable[[Any, Any, Any], None]:
        def add(gradient: Any) -> None:
            squares = gradient.float().square().mean(dim=-1).squeeze(0)
            self._squares[place] += share * squares.cpu().numpy()

        def hook(module: Any, inputs: Any, output: Any) -> None:
            if output.requires_grad:
                output.register_hook(add)

        return hook

    def check_agrees(self, logits: Floats, window: NDArray[np.int32]) -> None:
        """ConvertError unless PyTorch's logits (seq_len, n_vocab) of a window are ours."""
        with self._torch.no_grad():
            theirs = self._logits(window).float().cpu().numpy()
        difference = float(divergence(normalize(logits), normalize(theirs)).mean())
        if not difference < _AGREEMENT:
            raise ConvertError(f"--hessian end-loss: transformers and the engine disagree on this model by {difference:.3g} nats a token")

    def measure(self, tokens: NDArray[np.int32], checkpoint: Path, progress: Callable[[int], None] = lambda windows: None) -> Floats:
        """(windows, sites, seq_len) mean of the outputs' squared gradients; each window's are kept in `checkpoint`."""
        journal = Journal(checkpoint, (len(self._sites), tokens.shape[1]), np.float32)
        for index in range(len(journal), len(tokens)):
            journal.put(index, self._window(tokens[index], np.random.default_rng([self._seed, index]))[None])
            progress(index + 1)
        return journal.read()

    def _window(self, window: NDArray[np.int32], rng: np.random.Generator) -> Floats:
        self._squares = np.zeros((len(self._sites), len(window)), np.float32)
        logits = self._logits(window)
        labels = draw(logits.detach().float().cpu().numpy(), rng)
        loss = self._torch.nn.functional.cross_entropy(logits.float(), self._tensor(labels), reduction="sum")
        loss.backward()
        return self._squares

    def _logits(self, window: NDArray[np.int32]) -> Any:
        return self._network(input_ids=self._tensor(window)[None], use_cache=False).logits[0]

    def _tensor(self, values: NDArray[np.int32]) -> Any:
        return self._torch.from_numpy(values.astype(np.int64)).to(self._device)


def _load(source: Source, torch: Any) -> Any:
    """transformers' model of the source."""
    place = {"gguf_file": source.path.name} if source.path.is_file() else {}
    folder = source.path.parent if source.path.is_file() else source.path
    dtype = torch.float32 if source.parameters < _BF16_PARAMETERS else torch.bfloat16
    transformers = _import("transformers")
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, **place)
    except (ValueError, KeyError, OSError, ImportError, NotImplementedError) as error:
        raise ConvertError(f"--hessian end-loss: transformers cannot load {source.path}: {error}") from None
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()


def token_weights(squares: Floats, power: float, sites: Sequence[str]) -> dict[str, Floats]:
    """Site -> (tokens,) weights of mean 1 from measure's squares, tempered: so few tokens would count otherwise that they are noise."""
    tempered = np.power(squares.astype(np.float64), power)
    weights = {}
    for place, site in enumerate(sites):
        values = tempered[:, place].ravel()
        mean = values.mean()
        weights[site] = (values / mean if mean > 0 else np.ones_like(values)).astype(np.float32)
    return weights

"""A model in a Hugging Face folder: config.json, safetensors (one file or shards), tokenizer."""

import re
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConvertError, listing
from ...common.files import is_present, read_json
from ..architectures import Architecture, Shape, by_model_type, permute_heads
from ..delta_net import to_gguf_convention as delta_net_convention
from ..folding import EXPERT_SCALES, ROUTER_SCALE
from ..heads import head_of_folder, head_tensor
from ..hyperparameters import checked_config, hyperparameters_of_config
from ..mtp import note_of
from ..pooling import embedding_keys_of_folder
from ..rope import rope_tensors
from ..tokenizer import tokenizer_of_folder
from .base import TRANSPOSED, Piece, Source
from .model_files import model_files
from .safetensors_file import SafetensorsFile
from .stored_tensors import StoredTensors

# Stored, but no weights of the text model.
_IGNORED = re.compile(
    r".*rotary_emb\.inv_freq|.*\.masked_bias|.*(vision|audio)_tower\..*|.*multi_modal_projector\..*|.*embed_(vision|audio)\..*|.*visual\..*"
)
_TEXT_PREFIX = re.compile(r"^(model\.language_model\.|language_model\.model\.|language_model\.)")
_EXPERT = re.compile(r"model\.layers\.(\d+)\.(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(\w+)\.weight")
_EXPERTS = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj(_bias)?")  # gpt-oss's
_GEMMA4_EXPERTS = re.compile(r"model\.layers\.(\d+)\.(router\.scale|router\.per_expert_scale|experts\.gate_up_proj|experts\.down_proj)")
_GEMMA4_NAMES = {
    "router.scale": ROUTER_SCALE, "router.per_expert_scale": EXPERT_SCALES, "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
}  # fmt: skip
_EXPERT_PARTS = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "down_proj": "down", "up_proj": "up"}


class HuggingFaceSource(Source):
    """A folder as `save_pretrained` writes it, or as a hub snapshot has it."""

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.path = folder
        self._remember(model_files(folder))
        if not is_present(folder / "config.json"):
            raise ConvertError(f"{folder}: no config.json, so not a Hugging Face model folder")
        origin = str(folder / "config.json")
        self.config = checked_config(origin, read_json(folder / "config.json"))
        self.architecture: Architecture = by_model_type(self.config["model_type"])
        self.hyperparameters = hyperparameters_of_config(origin, self.architecture, self.config)
        self.name = str(self.config.get("_model_name_or_path") or name or folder.resolve().name)
        self.general = {}
        self.embedding = embedding_keys_of_folder(folder)
        self._tensors = StoredTensors(origin, self.config.get("quantization_config") or {}, _open_shards(folder))
        self._check_plausible(self._tensors.shapes)
        self._rope = rope_tensors(origin, self.architecture, {**self.architecture.defaults, **self.config}, self.hyperparameters)
        self._pieces = self._map_tensors(origin)
        self.tokenizer = tokenizer_of_folder(folder, self.hyperparameters["vocab_size"], self.config)

    def stored_files(self) -> list[Path]:
        weights = self._tensors.paths
        return [self.path, *(file for file in self._opened if file in weights or file.suffix != ".safetensors")]

    @property
    def quantized_as(self) -> str | None:
        return self._tensors.quantized_as

    def _map_tensors(self, origin: str) -> dict[str, Piece]:
        names = tensor_names(self.architecture, self.hyperparameters["block_count"])
        stored: dict[str, tuple[str, Shape]] = {name: (name, tensor.shape) for name, tensor in self._rope.items()}
        unknown: list[str] = []
        heads: dict[str, tuple[str, Shape]] = {}
        mtp: list[str] = []
        tied = {**self.architecture.defaults, **self.config}.get("tie_word_embeddings")
        for own_name, shape in self._tensors.shapes.items():
            if own_name.startswith("mtp."):
                mtp.append(own_name)
                continue
            if _IGNORED.fullmatch(own_name) or (tied and own_name.endswith("lm_head.weight")):
                continue
            if place := head_tensor(_TEXT_PREFIX.sub("", own_name)):
                heads[place] = (own_name, shape)
            elif gguf_name := gguf_tensor_name(own_name, names):
                if self.architecture.delta_net:  # their stacked experts are (experts, outputs, inputs)
                    gguf_name = gguf_name.replace(TRANSPOSED, "_exps.")
                stored[self.architecture.final_name(gguf_name)] = (own_name, shape)
            else:
                unknown.append(own_name)
        self.notes = [note_of(mtp)] if mtp else []
        # a model saved without its output matrix only embeds or scores: the embedding stands in for it
        headless = bool(heads) or (self.config.get("architectures") or [""])[0].endswith("Model")
        n_embd = self.hyperparameters["embedding_length"]
        head = head_of_folder(origin, self.architecture.gguf, self.config, n_embd, heads)
        return self._bind(stored, unknown, head, needs_output=tied is False and not headless)

    def _read(self, name: str) -> NDArray[np.float32]:
        if name in self._rope:
            return self._rope[name]
        return self._to_gguf_convention(name, self._read_piece(self._pieces[name]).reshape(self.shapes[name]))

    def _read_piece(self, piece: Piece) -> NDArray[np.float32]:
        return piece.cut(self._tensors.read(piece.stored, piece.expert, piece.rows))

    def _to_gguf_convention(self, name: str, w: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.architecture.paired_rope and re.search(r"attn_[qk]\.", name):
            heads = self.hyperparameters["attention.head_count" if "attn_q." in name else "attention.head_count_kv"]
            w = permute_heads(w, heads)
        if self.architecture.delta_net:
            w = delta_net_convention(name, w, self.hyperparameters, self.architecture.tiled_value_heads)
        if self.architecture.norm_offset and name.endswith("norm.weight") and not name.endswith("ssm_norm.weight"):
            w = w + np.float32(1)
        return np.ascontiguousarray(w)


def tensor_names(architecture: Architecture, n_layers: int) -> gguf.TensorNameMap:
    """What gguf_tensor_name looks names up in."""
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.gguf)
    return gguf.get_tensor_name_map(arch, n_layers)


def gguf_tensor_name(name: str, names: gguf.TensorNameMap) -> str | None:
    """llama.cpp's name of a Hugging Face tensor; None when it has none."""
    name = _TEXT_PREFIX.sub("model.", name).replace("model.lm_head", "lm_head")
    if match := _EXPERT.fullmatch(name):
        layer, expert, part = match.groups()
        return f"blk.{layer}.ffn_{_EXPERT_PARTS[part]}.{expert}.weight" if part in _EXPERT_PARTS else None
    if match := _GEMMA4_EXPERTS.fullmatch(name):
        return f"blk.{match[1]}.{_GEMMA4_NAMES[match[2]]}"
    if match := _EXPERTS.fullmatch(name):
        return f"blk.{match[1]}.ffn_{match[2]}{TRANSPOSED}{'bias' if match[3] else 'weight'}"
    name = name.replace(".dt_bias", ".dt_proj.bias")
    name += ".weight" if name.endswith((".sinks", ".layer_scalar")) else ""
    return names.get_name(name, try_suffixes=(".weight", ".bias"))


def _shards(index: Path) -> list[Path]:
    """The files that an index names; all must be there."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ConvertError(f"{index}: weight_map is {type(weight_map).__name__}, expected an object of file names")
    shards = sorted(set(weight_map.values()))
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        raise ConvertError(f"{index}: names files outside its folder: {listing(outside)}")
    if absent := [shard for shard in shards if not is_present(index.with_name(shard))]:
        raise ConvertError(f"{index}: names shards that are not there: {listing(absent)}")
    return [index.with_name(shard) for shard in shards]


def _open_shards(folder: Path) -> dict[str, SafetensorsFile]:
    """Every stored tensor's file; all shards that the index names must be there."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if is_present(single):  # before an index, as transformers does: it may be left over from shards
        paths = [single]
    elif is_present(index):
        paths = _shards(index)
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        has_bin = any(folder.glob("pytorch_model*.bin"))
        raise ConvertError(f"{folder}: no safetensors files" + (" (pytorch_model.bin is not read: it can run code)" if has_bin else ""))
    return {name: file for path in paths for file in [SafetensorsFile(path)] for name in file.shapes}

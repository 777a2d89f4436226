"""Types of cached keys and values: the names that users know, and the core's."""

from collections.abc import Iterable
from typing import NamedTuple

CHOICES = ("f16", "k8v8", "k8v4", "k4v8", "k4v4")  # of command lines; k8v4: keys in 8 bits, values in 4

OFFERED = ("auto", *CHOICES)  # where a model is run; auto: what was measured for models of its kind
CACHE_HELP = "keys and values: k8v4 is 8 and 4 bits; auto: codes where they were measured to lose little, else f16 (default: %(default)s)"
MEASURED = "measured"  # cache_type's name for auto, which measured_choice() makes one of CHOICES once the model is known

# Architectures whose loss was measured on real models, with the sizes of their heads (docs/running.md has the table): types
# whose mean KL divergence from float16 stayed below .004 at every depth. Those of qwen2 do where the file has the means of its keys,
# which are large, and balances.
_MEASURED: dict[tuple[str, int], str] = {("llama", 64): "k8v8"}
_MEASURED_BALANCED = {**_MEASURED, ("qwen2", 64): "k8v8"}

KEY_STATISTICS = ".attn_k_cache_"  # in the names of tensors that say something of a layer's keys (docs/format.md)

# What a cache budget goes through, from most bytes to fewest; values lose bits before keys, which need them more.
_LEVELS = ("f16", "k8v8", "k8v4", "k4v4")
_FOUR_BIT_KEYS = ("llama",)  # architectures that were measured to bear them
_BALANCED_FOUR_BIT_KEYS = ("qwen2",)  # and only without the large means of their keys, which a token's one scale must span

# llama.cpp's numbers and names. Types that the core lacks get the next one with no fewer bits.
_NUMBERS = {0: "f32", 1: "f16", 30: "f32", 8: "8", 6: "8", 7: "8", 2: "4", 3: "4", 20: "4"}
_NAMES = {"f32": "f32", "f16": "f16", "bf16": "f32", "q8_0": "8", "q5_0": "8", "q5_1": "8", "q4_0": "4", "q4_1": "4", "iq4_nl": "4"}


def cache_type(type_k: int | str | None, type_v: int | str | None) -> str:
    """The core's name for the types of keys and values, as llama.cpp numbers or names them; None: float16, or float32 with float32
    activations; "auto": MEASURED.

    Raises ValueError for types that are unknown or do not go together.
    """
    if type_k is None and type_v is None:
        return "auto"
    if type_k == "auto":
        if type_v not in (None, "auto"):
            raise ValueError(f"type_k='auto' with type_v={type_v!r}: auto chooses both")
        return MEASURED
    k, v = _known("type_k", type_k), _known("type_v", type_v)
    if k[0] == v[0] == "f":
        return max(k, v, key=lambda name: name == "f32")
    if k[0] == "f" or v[0] == "f":
        raise ValueError(f"type_k={type_k!r} with type_v={type_v!r}: keys and values are both quantized or both not")
    return f"k{k}v{v}"


def types_of(choice: str) -> tuple[str | None, str | None]:
    """(type_k, type_v) of one of CHOICES."""
    if choice in ("f16", "auto"):
        return (None, None) if choice == "f16" else ("auto", "auto")
    return f"q{choice[1]}_0", f"q{choice[3]}_0"


def is_balanced(names: Iterable[str], layers: Iterable[int]) -> bool:
    """Whether the file has means and balances of the keys of all these layers, those that may keep codes (docs/format.md).

    Args:
        names: of the file's tensors.
        layers: their numbers, as `_core.GgufFile.layers_with_codes` has them.
    """
    wanted = {f"blk.{layer}{KEY_STATISTICS}{kind}.weight" for layer in layers for kind in ("mean", "balance")}
    return bool(wanted) and wanted.issubset(names)


class Choice(NamedTuple):
    """What `auto` takes: one of CHOICES, and why, in a few words for people."""

    cache: str
    why: str


def measured_choice(architecture: str, head_dims: Iterable[int], balanced: bool) -> Choice:
    """What suits a model: f16 where models of its architecture and size of heads were not measured."""
    dims = set(head_dims)
    if (cache := _measured(_MEASURED_BALANCED if balanced else _MEASURED, architecture, dims)) != "f16":
        return Choice(cache, "measured to lose little with such models")
    if _measured(_MEASURED_BALANCED, architecture, dims) != "f16":
        return Choice("f16", "codes lose too much with such models where not every layer of the file has means and balances of its keys")
    return Choice("f16", "quantized caches were not measured with such models")


def _measured(table: dict[tuple[str, int], str], architecture: str, head_dims: set[int]) -> str:
    found = {table.get((architecture, dim), "f16") for dim in head_dims}
    return found.pop() if len(found) == 1 else "f16"


def budget_levels(own: str, four_bit_keys: bool) -> tuple[str, ...]:
    """The types that prefixes of a context of type `own` go through, that first: with fewer bits in keys or values and more in neither.
    Keys get 4 bits only where that was measured to be bearable: `four_bit_keys`."""
    k, v = _bits(own)
    levels = [name for name in _LEVELS if name != own and _bits(name)[0] <= k and _bits(name)[1] <= v]
    return (own, *(name for name in levels if _bits(name)[0] > 4 or k == 4 or four_bit_keys))


def four_bit_keys(architecture: str, balanced: bool) -> bool | None:
    """Whether models were measured to bear keys in 4 bits (True) or to lose their sense with them (False); None: not measured."""
    if architecture in _FOUR_BIT_KEYS:
        return True
    return balanced if architecture in _BALANCED_FOUR_BIT_KEYS else None


def _bits(name: str) -> tuple[int, int]:
    return (int(name[1]), int(name[3])) if name[0] == "k" else (int(name[1:]), int(name[1:]))


def _known(argument: str, value: int | str | None) -> str:
    found = _NAMES.get(value) if isinstance(value, str) else _NUMBERS.get(1 if value is None else value)
    if found is None:
        raise ValueError(f"{argument}={value!r} is not supported; known: {', '.join(_NAMES)}, or ggml's numbers {sorted(_NUMBERS)}")
    return found

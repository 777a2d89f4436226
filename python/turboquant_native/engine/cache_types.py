"""Types of cached keys and values: the names that users know, and the core's."""

CHOICES = ("f16", "k8v8", "k8v4", "k4v8", "k4v4")  # of command lines; k8v4: keys in 8 bits, values in 4

# llama.cpp's numbers and names. Types that the core lacks get the next one with no fewer bits.
_NUMBERS = {0: "f32", 1: "f16", 30: "f32", 8: "8", 6: "8", 7: "8", 2: "4", 3: "4", 20: "4"}
_NAMES = {"f32": "f32", "f16": "f16", "bf16": "f32", "q8_0": "8", "q5_0": "8", "q5_1": "8", "q4_0": "4", "q4_1": "4", "iq4_nl": "4"}


def cache_type(type_k: int | str | None, type_v: int | str | None) -> str:
    """The core's name for the types of keys and values, as llama.cpp numbers or names them; None: float16, or float32 with float32
    activations.

    Raises ValueError for types that are unknown or do not go together.
    """
    if type_k is None and type_v is None:
        return "auto"
    k, v = _known("type_k", type_k), _known("type_v", type_v)
    if k[0] == v[0] == "f":
        return max(k, v, key=lambda name: name == "f32")
    if k[0] == "f" or v[0] == "f":
        raise ValueError(f"type_k={type_k!r} with type_v={type_v!r}: keys and values are both quantized or both not")
    return f"k{k}v{v}"


def types_of(choice: str) -> tuple[str | None, str | None]:
    """(type_k, type_v) of one of CHOICES."""
    if choice == "f16":
        return None, None
    return f"q{choice[1]}_0", f"q{choice[3]}_0"


def _known(argument: str, value: int | str | None) -> str:
    found = _NAMES.get(value) if isinstance(value, str) else _NUMBERS.get(1 if value is None else value)
    if found is None:
        raise ValueError(f"{argument}={value!r} is not supported; known: {', '.join(_NAMES)}, or ggml's numbers {sorted(_NUMBERS)}")
    return found

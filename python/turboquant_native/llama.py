"""Where `Llama` was first: old imports and pickles find it here."""

from .api.llama import Llama

__all__ = ["Llama"]

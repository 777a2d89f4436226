"""How fast an answer was."""

from __future__ import annotations

from typing import Any


def speeds(timings: Any) -> dict[str, float]:
    """Counts, seconds and tokens/s of the last completion."""
    return {
        "prompt_tokens": timings.prompt_tokens,
        "prompt_seconds": timings.prompt_seconds,
        "prompt_tokens_per_second": _rate(timings.prompt_tokens, timings.prompt_seconds),
        "generated_tokens": timings.generated_tokens,
        "generation_seconds": timings.generation_seconds,
        "generation_tokens_per_second": _rate(timings.generated_tokens, timings.generation_seconds),
    }


def speed_line(timings: Any) -> str:
    """The same for people."""
    rates = speeds(timings)
    return (
        f"prompt: {timings.prompt_tokens} tokens, {rates['prompt_tokens_per_second']:.1f} tokens/s;  "
        f"generation: {timings.generated_tokens} tokens, {rates['generation_tokens_per_second']:.1f} tokens/s"
    )


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0

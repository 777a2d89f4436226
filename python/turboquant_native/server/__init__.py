"""The HTTP server (extra `[server]`): OpenAI's and Anthropic's protocols over one engine.

>>> from turboquant_native.server import Settings, create_app
>>> app = create_app(Settings(models=["model.gguf"]))  # for any ASGI server
"""

from typing import TYPE_CHECKING, Any

from .settings import Settings

if TYPE_CHECKING:
    from .app import create_app

__all__ = ["Settings", "create_app"]


def __getattr__(name: str) -> Any:
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .app import create_app
    except ModuleNotFoundError as error:
        raise ImportError(f"the server needs {error.name}: pip install 'turboquant-native[server]'") from error
    return create_app

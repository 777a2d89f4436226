"""Models that several test modules share: a tiny random one, made here, and SmolLM2 where the environment names it (TQ_SMOLLM2)."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny_models import LLAMA, THREE_LAYERS, llama_tensors, save_llama

# Tests interrupt themselves; a shell starts its background jobs with interrupts ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kept models, history and machine figures of a test are its own."""
    home = tmp_path / "tqn-home"
    monkeypatch.setenv("TQN_HOME", str(home))
    monkeypatch.delenv("TQN_INDEX", raising=False)
    return home


def convert(source: Path, target: Path, *options: str) -> Path:
    from turboquant_native.commands import convert as convert_hf_to_tq

    assert convert_hf_to_tq.main([str(source), str(target), "--quiet", *options]) == 0
    return target


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: 2 layers of width 48, 320 tokens, a context of 256."""
    return save_llama(tmp_path_factory.mktemp("tiny") / "llama", {**LLAMA, "max_position_embeddings": 256})


@pytest.fixture(scope="session")
def tiny_f32(tiny_llama_dir: Path) -> Path:
    """That model unquantized."""
    return convert(tiny_llama_dir, tiny_llama_dir.parent / "f32.gguf", "--outtype", "f32")


@pytest.fixture(scope="session")
def tiny_tqn(tiny_llama_dir: Path) -> Path:
    """That model at 6 bits."""
    return convert(tiny_llama_dir, tiny_llama_dir.parent / "tqn6.gguf", "--bits", "6", "--effort", "none")


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context of 1024, at 6 bits."""
    folder = save_llama(tmp_path_factory.mktemp("chat") / "tiny", {**LLAMA, "max_position_embeddings": 1024})
    return convert(folder, folder.parent / "tiny.gguf", "--bits", "6")


@pytest.fixture(scope="session")
def three_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: THREE_LAYERS."""
    return save_llama(tmp_path_factory.mktemp("model") / "hf", THREE_LAYERS, llama_tensors(THREE_LAYERS))


@pytest.fixture(scope="session")
def f32_path(three_layers: Path) -> Path:
    """That model unquantized."""
    return convert(three_layers, three_layers / "f32.gguf", "--outtype", "f32")


@pytest.fixture(scope="session")
def packed_path(three_layers: Path) -> Path:
    """That model at 4 bits, with outliers."""
    return convert(three_layers, three_layers / "packed.gguf", "--bits", "4", "--outliers", "0.01", "--effort", "none")


@pytest.fixture(scope="session", params=["f32", "packed"])
def model(request: pytest.FixtureRequest, f32_path: Path, packed_path: Path) -> Any:
    """Unquantized on the float path; packed with int8 activations. A float16 cache of unquantized layers would turn last-bit differences
    between batch sizes into float16 steps."""
    from turboquant_native._core import Model

    return Model(str(f32_path), precision="f32") if request.param == "f32" else Model(str(packed_path))


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file; `make test` downloads it and names it."""
    path = os.environ.get("TQ_SMOLLM2")
    if not path:
        pytest.skip("TQ_SMOLLM2 does not name a GGUF file of SmolLM2-135M-Instruct (make test does)")
    return Path(path)


@pytest.fixture(scope="session")
def smollm2_tqn8(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 at 8 bits."""
    return convert(smollm2_gguf, tmp_path_factory.mktemp("smollm2") / "tqn8.gguf", "--bits", "8", "--effort", "none")


@pytest.fixture
def llm(tiny_tqn: Path):
    """The tiny model, open."""
    from turboquant_native import Llama

    with Llama(str(tiny_tqn), n_ctx=256, n_threads=1, verbose=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def browser():
    """Chromium; a module that uses it imports page_driver, which skips where it cannot run."""
    from page_driver import launched

    with launched() as browser:
        yield browser


@pytest.fixture
def browser_context(browser):
    from page_driver import fresh_context

    with fresh_context(browser) as context:
        yield context


@pytest.fixture
def site():
    """The scripted server that the web page talks to."""
    from page_server import PageServer

    server = PageServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(browser_context, site):
    """The web page, open and connected."""
    from page_driver import opened

    with opened(browser_context, site.url) as page:
        yield page


# --- of the server's tests


@pytest.fixture(scope="module")
def llama(chat_model: Path) -> Iterator[Any]:
    from server_tools import HERMES
    from turboquant_native import Llama

    with Llama(str(chat_model), n_ctx=512, n_slots=4, n_batch=32, n_threads=1, chat_format=HERMES, verbose=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def thinker(chat_model: Path) -> Iterator[Any]:
    from server_tools import THINKING
    from turboquant_native import Llama

    with Llama(str(chat_model), n_ctx=512, n_slots=2, n_threads=1, chat_format=THINKING, verbose=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(llama: Any) -> Iterator[Any]:
    from starlette.testclient import TestClient

    from turboquant_native.server import Settings, create_app

    with TestClient(create_app(llama, Settings(n_slots=4)), raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def thinking_client(thinker: Any) -> Iterator[Any]:
    from starlette.testclient import TestClient

    from turboquant_native.server import Settings, create_app

    with TestClient(create_app(thinker, Settings(n_slots=2)), raise_server_exceptions=False) as opened:
        yield opened

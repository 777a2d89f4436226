"""Every hostile file of tests/attacks is refused with its own words, within a small part of the machine's memory."""

import importlib.util
import resource
import sys
from pathlib import Path

import pytest

from turboquant_native import _core

_PATH = Path(__file__).parents[1] / "attacks" / "attacks.py"
_SPEC = importlib.util.spec_from_file_location("attacks", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
attacks = sys.modules["attacks"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(attacks)

REFUSED = (_core.FormatError, _core.UnsupportedError)
MEMORY = 256 << 20  # a file of at most a few MB has no business taking more


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.fixture
def bounded_memory():
    """A bomb gets MemoryError, which no test expects, instead of the machine."""
    if not Path("/proc/self/statm").exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", [name for name, attack in attacks.ATTACKS.items() if not attack.model])
@pytest.mark.usefixtures("bounded_memory")
def test_refused_by_the_reader(tmp_path: Path, name: str) -> None:
    attack = attacks.ATTACKS[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(attack.build())
    with pytest.raises(REFUSED, match=attack.words) as caught:
        _core.GgufFile(path)
    assert "hostile.gguf" in str(caught.value)


@pytest.mark.parametrize("name", [name for name, attack in attacks.ATTACKS.items() if attack.model])
@pytest.mark.usefixtures("bounded_memory")
def test_refused_by_the_engine(tmp_path: Path, name: str) -> None:
    attack = attacks.ATTACKS[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(attack.build())
    with pytest.raises(REFUSED, match=attack.words) as caught:
        _core.Model(str(path))
    assert "hostile.gguf" in str(caught.value)


def test_the_models_that_attacks_start_from_are_sound(tmp_path: Path) -> None:
    """Otherwise an attack might be refused for another reason than its own."""
    path = tmp_path / "sound.gguf"
    path.write_bytes(attacks.packed_file())
    assert list(_core.GgufFile(path).quantized()) == ["w"]
    path.write_bytes(attacks.llama())
    assert _core.Model(str(path)).parameters > 0

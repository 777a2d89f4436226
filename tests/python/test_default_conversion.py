"""Every architecture goes through `tqn convert` as a user would call it: estimated, calibrated, allocated, rounded, measured, verified."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from architecture_cases import CHOSEN, Case, References
from turboquant_native import _core
from turboquant_native.commands.convert import main
from turboquant_native.evaluate.evaluation import divergence, normalize


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory)


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_calibrated(case: Case, references: References, tiny_llama_dir: Path, tmp_path: Path) -> None:
    reference, out = references.of(case), tmp_path / "out.gguf"
    folder = tmp_path / "folder"
    shutil.copytree(reference.folder, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama_dir / name, folder / name)
    assert main([str(folder), str(out), "--bpw", "6", "--effort", "fast"]) == 0
    logits = _core.Context(_core.Model(str(out), precision="f32", threads=1), n_ctx=128).eval(reference.tokens, 0, logits="all")
    wanted = normalize(reference.logits)
    loss, unrelated = divergence(wanted, normalize(logits)).mean(), divergence(wanted[1:], wanted[:-1]).mean()
    assert 0 < loss < unrelated / 4

"""`Llama.from_pretrained` against a hub on this machine."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import local_hub
from turboquant_native.api import hub


def run(endpoint, home, code):
    environment = local_hub.environment(endpoint, home)
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def repository(tiny_llama_dir, tmp_path):
    return shutil.copytree(tiny_llama_dir, tmp_path / "repository")


def test_safetensors_are_converted_once(repository, tmp_path):
    code = """
        from turboquant_native import Llama
        with Llama.from_pretrained("tiny/model", bits=6, n_ctx=64) as llm:
            print(llm.model_path, llm("The quick", max_tokens=4, temperature=0)["usage"]["total_tokens"] > 4)
    """
    with local_hub.serve(repository) as endpoint:
        first = run(endpoint, tmp_path / "hf", code)
    assert first.returncode == 0, first.stderr
    again = run("http://127.0.0.1:9", tmp_path / "hf", code)  # nobody answers: the file is there already
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout and "tiny--model--6bit-" in first.stdout and first.stdout.endswith(" True\n")


def test_a_folder_is_converted_again_when_it_changed(tiny_llama_dir, tmp_path, monkeypatch):
    paths = []
    for name in ("a", "b"):  # two folders of one relative name
        shutil.copytree(tiny_llama_dir, tmp_path / name / "model")
        monkeypatch.chdir(tmp_path / name)
        paths.append(Path(hub.converted("./model", 2, str(tmp_path / "cache"))))
    assert paths[0] != paths[1]
    made = paths[1].stat().st_mtime_ns
    assert hub.converted("model", 2, str(tmp_path / "cache")) == str(paths[1]) and paths[1].stat().st_mtime_ns == made
    later = paths[1].stat().st_mtime + 10
    os.utime("model/config.json", (later, later))
    hub.converted("model", 2, str(tmp_path / "cache"))
    assert paths[1].stat().st_mtime_ns > made


def test_a_file_is_found_by_glob(repository, tiny_tqn, tmp_path):
    shutil.copy(tiny_tqn, repository / "model-q6.gguf")
    code = """
        from turboquant_native import Llama
        with Llama.from_pretrained("tiny/model", "*{}*.gguf", n_ctx=64) as llm:
            print(llm.n_vocab())
    """
    with local_hub.serve(repository) as endpoint:
        found = run(endpoint, tmp_path / "hf", code.format("q6"))
        missing = run(endpoint, tmp_path / "hf", code.format("q7"))
    assert found.stdout == "320\n", found.stderr
    assert "matches 0 files of tiny/model, expected one of: model-q6.gguf" in missing.stderr

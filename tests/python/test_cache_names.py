"""The cache of converted models: the right model under any name, made once, and made again when its folder changes."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import local_hub
from tiny_models import LLAMA, llama_tensors, save_llama
from turboquant_native import Llama
from turboquant_native.api import hub
from turboquant_native.commands import info as info_command
from turboquant_native.commands import verify as verify_command
from turboquant_native.convert.inspection import describe, verify


def test_names_are_of_one_model_each() -> None:
    keys = [
        (Path("/x--y"), 4, None), (Path("/x/y"), 4, None), (Path("/x/y"), 6, None), ("x/y", 4, None), ("x--y", 4, None), ("x/y", 4, "main"),
        ("x/y", 4, "refs/pr/1"), ("x/y", 4, "refs--pr--1"), ("x/y--main", 4, None), (Path("/x/y\udcff"), 4, None), (Path("/x/yé"), 4, None),
    ]  # fmt: skip
    names = [hub.cached_name(*key) for key in keys]
    assert len(set(names)) == len(names) == len({name.lower() for name in names})
    for name in names:
        assert "/" not in name and len(os.fsencode(f".{name}.partial.journal")) <= 255 and name.isascii()
    assert names[4].startswith("x--y--4bit-") and names[6].startswith("x--y--refs-pr-1--4bit-")
    assert len(hub.cached_name(Path("/" + "/".join(["long" * 50] * 20)), 4, "r" * 300)) < 200


def test_two_folders_whose_names_run_together(tmp_path: Path) -> None:
    shapes = [LLAMA, {**LLAMA, "vocab_size": 324}]
    folders = [tmp_path / "x--y", tmp_path / "x" / "y"]
    for folder, shape in zip(folders, shapes, strict=True):
        save_llama(folder, shape, llama_tensors(shape))
    for folder, shape in zip(folders, shapes, strict=True):
        with Llama.from_pretrained(str(folder), bits=2, cache_dir=str(tmp_path / "cache"), n_ctx=32, verbose=False) as llm:
            assert llm.n_vocab() == shape["vocab_size"]


@pytest.fixture
def folder(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama_dir, tmp_path / "model")


def made(folder: Path, tmp_path: Path) -> tuple[str, int]:
    """The cached file and when it was made."""
    path = hub.converted(str(folder), 2, str(tmp_path / "cache"))
    return path, Path(path).stat().st_mtime_ns


def test_older_weights_make_it_new(folder: Path, tmp_path: Path) -> None:
    first = made(folder, tmp_path)
    assert made(folder, tmp_path) == first
    weights = folder / "model.safetensors"
    before = weights.stat()
    copy = tmp_path / "older"
    shutil.copy(weights, copy)
    os.utime(copy, (before.st_atime - 10_000, before.st_mtime - 10_000))
    os.replace(copy, weights)
    second = made(folder, tmp_path)
    assert second[0] == first[0] and second[1] != first[1]
    (folder / "notes.txt").write_text("a conversion does not read this")
    assert made(folder, tmp_path) == second


def test_links_to_nothing_do_no_harm(folder: Path, tmp_path: Path) -> None:
    (folder / "notes").symlink_to("nothing")
    (folder / "chat_template.json").unlink(missing_ok=True)
    first = made(folder, tmp_path)
    (folder / "extra.safetensors").symlink_to("nothing")
    assert made(folder, tmp_path)[0] == first[0]


def test_a_damaged_cached_file_is_made_again(folder: Path, tmp_path: Path) -> None:
    path, _ = made(folder, tmp_path)
    Path(path).write_bytes(b"GGUF")
    assert verify(made(folder, tmp_path)[0]).ok


def test_processes_with_a_cold_cache_wait_for_the_first(folder: Path, tmp_path: Path) -> None:
    code = f"from turboquant_native.api import hub; print(hub.converted({str(folder)!r}, 2, {str(tmp_path / 'cache')!r}))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * 4, results
    assert len({out for out, _ in results}) == 1 and sum("converting" in err for _, err in results) == 1


def test_a_revision_with_slashes(folder: Path, tmp_path: Path) -> None:
    code = """
        from turboquant_native import Llama
        with Llama.from_pretrained("tiny/model", bits=2, revision="refs/pr/1", n_ctx=64, verbose=False) as llm:
            print(llm.model_path)
    """
    with local_hub.serve(folder) as endpoint:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=local_hub.environment(endpoint, tmp_path / "hf"), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tiny--model--refs-pr-1--2bit-" in done.stdout


def test_paths_that_are_no_utf8(tiny_llama_dir: Path, tiny_tqn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from turboquant_native.commands import convert as convert_command

    place = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        place.mkdir()
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    path = str(place / "m.gguf")
    assert convert_command.main([str(shutil.copytree(tiny_llama_dir, place / "model")), path, "--outtype", "f16", "--quiet"]) == 0
    assert verify(path).ok and describe(path).path == path
    with Llama(path, n_ctx=32, verbose=False) as llm:
        assert llm.model_path == path and llm("The", max_tokens=2)["model"] == path
    Llama(os.fsencode(path), n_ctx=32, verbose=False).close()
    with Llama.from_pretrained(str(place / "model"), bits=2, cache_dir=str(place / "cache"), n_ctx=32, verbose=False) as llm:
        assert llm.n_vocab() == 320
    for command in (verify_command, info_command):
        import argparse

        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        assert command.run(parser.parse_args([path])) == 0
        assert command.run(parser.parse_args([path, "--json"])) == 0
    capsys.readouterr().out.encode()  # a stream of UTF-8 takes all of it

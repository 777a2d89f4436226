"""Models by name: the store, the index, downloads, the hub, `tqn ls`, `pull` and `rm`."""

import contextlib
import hashlib
import http.server
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import local_hub
from turboquant_native.api import download, model_index
from turboquant_native.api.models import Models
from turboquant_native.api.store import Store, check_name, home
from turboquant_native.commands.cli import main


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def write(text):
    return lambda path: path.write_text(text)


# --- the store


def test_names():
    for name in ("smollm2", "org/name", "org/name:3bit", "a.b_c-d", "Qwen2.5:Q4"):
        assert check_name(name) == name
    for name in ("", ".", "..", "../x", "/x", "a//b", "a/b/c", "a/..", "a/.b", "a:b:c", "a b", "a\n", "-a", "a" * 97, "é", "a/b:"):
        with pytest.raises(ValueError, match="is no name of a model"):
            check_name(name)


def test_home(monkeypatch, tmp_path):
    assert home() == tmp_path / "tqn-home"
    monkeypatch.delenv("TQN_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert home() == tmp_path / "turboquant-native"


def test_models_are_kept_by_name(own_home):
    store = Store()
    assert list(store) == [] and store.find("org/x") is None
    entry = store.add("org/x", "somewhere", write("model"))
    other = store.add("org--x", "elsewhere", write("other"))
    assert entry.path.name == "x.gguf" and Store().add("org/x:3bit", "s", write("3")).path.name == "x-3bit.gguf"
    store.remove("org/x:3bit")
    assert entry.path != other.path and entry.path.read_text() == "model" and entry.size == 5
    assert [kept.name for kept in store] == ["org--x", "org/x"] and store.find("org/x") == entry
    assert store.find("../../etc") is None
    assert store.remove("org/x") > 5 and store.find("org/x") is None and other.path.exists()
    with pytest.raises(ValueError, match="no model is called 'org/x'"):
        store.remove("org/x")
    with pytest.raises(ValueError, match="is no name"):
        store.remove("../tqn-home")


def test_a_model_is_made_again_only_when_its_origin_changed():
    store, made = Store(), []

    def make(path):
        made.append(path)
        path.write_text(str(len(made)))

    for origin in ({"v": 1}, {"v": 1}, {"v": 2}):
        entry = store.add("m", "s", make, origin)
    assert len(made) == 2 and entry.path.read_text() == "2"
    assert store.add("m", "s", make, {"v": 2}, replace=True).path.read_text() == "3"


def test_what_is_not_finished_or_foreign_does_not_count(own_home):
    store = Store()
    with pytest.raises(OSError, match="disk"):
        store.add("broken", "s", lambda path: (_ for _ in ()).throw(OSError("disk")))
    folder = own_home / "models"
    (folder / "file").write_text("")
    other = '{"name": "other", "source": "s", "created": 1, "origin": {}}'
    for name, described in (("a", "{"), ("b", "[]"), ("c", other), ("d", '{"name": 1}')):
        (folder / name).mkdir()
        (folder / name / "model.gguf").write_text("")
        (folder / name / "model.json").write_text(described)
    assert list(store) == []
    assert store.add("broken", "s", write("whole")).size == 5


def _make_slowly(count):
    def make(path):
        with open(path.with_name("count"), "a") as stream:
            stream.write("x")
        time.sleep(0.3)
        path.write_text("model")

    Store().add("shared", "s", make)
    count.put(1)


def test_of_several_processes_one_makes_it(own_home):
    context = multiprocessing.get_context("fork")
    count = context.Queue()
    processes = [context.Process(target=_make_slowly, args=(count,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (Store().find("shared").path.with_name("count")).read_text() == "x"


# --- the index


def index(tmp_path, *models, **fields):
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"format": "tqn-index", "version": 1, "models": list(models)} | fields))
    return path


def listed(path, name="tiny:6bit", **fields):
    data = path.read_bytes()
    return {"name": name, "url": str(path), "sha256": hashlib.sha256(data).hexdigest(), "size": len(data), **fields}


def test_the_official_index_is_read():
    assert model_index.load() == []


def test_an_index_is_validated(tmp_path, tiny_tqn):
    good = listed(tiny_tqn)
    wrong = {
        "models[0] is no object": "text",
        "models[0].url must be a text": {**good, "url": None},
        "models[0].size must be": {**good, "size": -1},
        "models[0].size must be the bytes of the file, got True": {**good, "size": True},
        "models[0].sha256 must be 64": {**good, "sha256": "ab"},
        "'../x' is no name": {**good, "name": "../x"},
    }
    for message, model in wrong.items():
        with pytest.raises(ValueError) as error:
            model_index.load(str(index(tmp_path, model)))
        assert message in str(error.value)
    for fields in ({"version": 2}, {"format": "x"}, {"models": {}}):
        with pytest.raises(ValueError, match=r"index\.json"):
            model_index.load(str(index(tmp_path, **fields)))
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is no JSON"):
        model_index.load(str(tmp_path / "index.json"))


def test_a_name_without_a_tag_is_the_first(tmp_path, tiny_tqn):
    models = model_index.load(str(index(tmp_path, listed(tiny_tqn, "m:4bit"), listed(tiny_tqn, "m:3bit"))))
    assert model_index.find("m", models).name == "m:4bit" and model_index.find("m:3bit", models).name == "m:3bit"
    assert model_index.find("m:2bit", models) is None and model_index.find("mm", models) is None


def test_pull_run_ls_rm(tmp_path, tiny_tqn, capsys):
    place = index(tmp_path, listed(tiny_tqn, "tiny:6bit", description="a tiny model"))
    code, out, _ = call(capsys, "ls", "--all", "--index", place)
    assert code == 0 and "tiny:6bit" in out and "to pull" in out
    code, out, err = call(capsys, "pull", "tiny", "--index", place, "--json")
    pulled = json.loads(out)
    assert code == 0 and pulled["name"] == "tiny:6bit" and pulled["size"] == tiny_tqn.stat().st_size and "100%" in err
    tiny = ["-n", "4", "--temp", "0", "--raw", "-p", "fox"]
    assert call(capsys, "run", "tiny", *tiny)[:2] == call(capsys, "run", tiny_tqn, *tiny)[:2]
    code, out, _ = call(capsys, "ls")
    assert code == 0 and "tiny:6bit" in out and str(tiny_tqn) in out
    assert json.loads(call(capsys, "ls", "--json")[1])["models"][0]["name"] == "tiny:6bit"
    for verb in ("info", "verify"):
        assert call(capsys, verb, "tiny:6bit")[0] == 0
    assert "nothing" in call(capsys, "info", "nothing")[2]
    code, out, err = call(capsys, "rm", "nothing", "tiny:6bit")
    assert code == 1 and "tiny:6bit: removed" in out and "'nothing'" in err
    assert "no models" in call(capsys, "ls")[1]
    assert call(capsys, "pull", "unknown", "--index", place)[0] == 1


# --- downloads


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `data`; `ranges`: as it should; `cut`: ends after so many bytes."""

    data, ranges, cut, requests = b"", True, None, []

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if self.path != "/file":
            return self.send_error(404, "Gone\x1b[31m")
        first = 0
        self.requests.append(self.headers.get("Range"))
        if self.ranges and (asked := self.headers.get("Range")):
            first = int(asked.removeprefix("bytes=").rstrip("-"))
        if first and first >= len(self.data):
            return self.send_error(416)
        body = self.data[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.cut])


@contextlib.contextmanager
def serve(**fields):
    handler = type("Handler", (Server,), {"requests": [], **fields})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/file", handler
    finally:
        server.shutdown()
        server.server_close()


DATA = bytes(range(256)) * 40
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("cut", [0, 1, 5000, len(DATA)])
def test_a_download_goes_on_where_it_stopped(tmp_path, ranges, cut):
    target = tmp_path / "model.gguf"
    with serve(data=DATA, ranges=ranges, cut=cut) as (url, handler):
        if cut < len(DATA):
            with pytest.raises(OSError, match=f"{cut} of {len(DATA)} bytes arrived"):
                download.fetch(url, target, SHA, len(DATA))
            assert not target.exists()
        else:
            (tmp_path / ".model.gguf.part").write_bytes(DATA)  # all of it came, the process died before the rename
        handler.cut = None
        download.fetch(url, target, SHA, len(DATA))
        assert target.read_bytes() == DATA and os.listdir(tmp_path) == ["model.gguf"]
        assert handler.requests[-1] == (f"bytes={cut}-" if cut else None)


def test_a_wrong_download_is_not_kept(tmp_path):
    target = tmp_path / "model.gguf"
    target.write_text("old")
    with serve(data=DATA) as (url, handler):
        for data, size in ((DATA[:-1] + b"x", len(DATA)), (DATA + b"more", len(DATA)), (b"x" * 50, 20)):
            handler.data = data
            with pytest.raises(ValueError, match="promised were"):
                download.fetch(url, target, SHA, size)
            assert os.listdir(tmp_path) == ["model.gguf"] and target.read_text() == "old"
        with pytest.raises(ConnectionError, match="404"):
            download.fetch(url + "s", target, SHA, 1)
        with pytest.raises(OSError, match="free on this disk"):
            download.fetch(url, target, SHA, 1 << 60)
        with pytest.raises(ValueError, match="more than 10 bytes"):
            download.fetch_small(url, 10)
    with pytest.raises(ConnectionError):
        download.fetch(url, target, SHA, len(DATA))


def test_an_index_from_the_network_names_no_local_files(tmp_path, tiny_tqn):
    for url in ("file:///etc/passwd", "ftp://x/y"):
        data = json.dumps({"format": "tqn-index", "version": 1, "models": [listed(tiny_tqn, url=url)]}).encode()
        with serve(data=data) as (place, _), pytest.raises(ValueError, match=r"url must be an http"):
            model_index.load(place)
    data = json.dumps({"format": "tqn-index", "version": 1, "models": [listed(tiny_tqn, url="m.gguf")]}).encode()
    with serve(data=data) as (place, _):
        assert model_index.load(place)[0].url == place.replace("/file", "/m.gguf")


# --- folders and the hub


def fake_convert(made):
    def convert(source, target, options):
        made.append((source, list(options)))
        target.write_text(source)

    return convert


def test_a_folder_is_converted_once(tiny_llama_dir, tmp_path):
    folder, made = shutil.copytree(tiny_llama_dir, tmp_path / "a model"), []
    models = Models(fake_convert(made))
    path = models.path(str(folder))
    assert models.path(str(folder)) == path and made == [(str(folder), [])] and path.read_text() == str(folder)
    later = time.time() + 10
    os.utime(folder / "config.json", (later, later))
    assert models.path(str(folder)) == path and len(made) == 2
    other = shutil.copytree(tiny_llama_dir, tmp_path / "b" / "a model")
    assert models.path(str(other)) != path


def test_files_and_folders_of_files(tiny_tqn, tmp_path):
    models = Models(fake_convert([]))
    assert models.path(str(tiny_tqn)) == tiny_tqn
    with pytest.raises(ValueError, match=r"no config\.json, and 0 GGUF files"):
        models.path(str(tmp_path))
    shutil.copy(tiny_tqn, tmp_path / "m.gguf")
    assert models.path(str(tmp_path)) == tmp_path / "m.gguf"
    with pytest.raises(FileNotFoundError, match=r"x\.gguf: no such file"):
        models.path("x.gguf")


def tqn(endpoint, folder, *arguments):
    environment = local_hub.environment(endpoint, folder / "hf")
    command = [sys.executable, "-m", "turboquant_native", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def test_a_repository_is_converted_once(tiny_llama_dir, tmp_path):
    asked = ["-n", "3", "--temp", "0", "--raw", "-p", "fox"]
    with local_hub.serve(tiny_llama_dir) as endpoint:
        made = tqn(endpoint, tmp_path, "pull", "tiny/model:6bit")
        missing = tqn(endpoint, tmp_path, "pull", "tiny/other")
        tag = tqn(endpoint, tmp_path, "pull", "tiny/model:large")
    assert made.returncode == 0 and made.stdout.startswith("tiny/model:6bit: "), made.stderr
    assert "converting tiny/model" in made.stderr
    assert missing.returncode == 1 and "tiny/other: cannot be had" in missing.stderr and missing.stderr.count("\n") == 1
    assert tag.returncode == 1 and "'large'" in tag.stderr
    offline = tqn("http://127.0.0.1:9", tmp_path, "run", "tiny/model", *asked)
    assert offline.returncode == 0 and "converting" not in offline.stderr, offline.stderr


def test_a_repository_with_tqn_files(tiny_llama_dir, tiny_tqn, tmp_path):
    repository = shutil.copytree(tiny_llama_dir, tmp_path / "repository")
    shutil.copy(tiny_tqn, repository / "model-6bit.tqn.gguf")
    with local_hub.serve(repository) as endpoint:
        one = tqn(endpoint, tmp_path, "pull", "tiny/model", "--json")
        shutil.copy(tiny_tqn, repository / "model-4bit.tqn.gguf")
        two = tqn(endpoint, tmp_path, "pull", "tiny/model", "--again")
        (repository / "model-4bit.tqn.gguf").write_bytes(tiny_tqn.read_bytes()[:-5000])
        damaged = tqn(endpoint, tmp_path, "pull", "tiny/model:4bit")
    assert one.returncode == 0, one.stderr
    entry = json.loads(one.stdout)
    assert entry["source"] == "tiny/model/model-6bit.tqn.gguf" and Path(entry["path"]).read_bytes() == tiny_tqn.read_bytes()
    assert two.returncode == 1 and "several TQN files: model-4bit.tqn.gguf, model-6bit.tqn.gguf" in two.stderr
    assert damaged.returncode == 1 and "model-4bit.tqn.gguf is damaged" in damaged.stderr

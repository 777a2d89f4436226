"""`tqn ps` and `tqn stop`: servers by the files that they leave, which are only believed where a process of ours stands behind them."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

from turboquant_native.api import running
from turboquant_native.commands.cli import main

SERVER = """
    import signal, sys, time
    from turboquant_native.api import running
    if "stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with running.registered("127.0.0.1", int(sys.argv[1]), "model-" + sys.argv[1]):
        print("ready", flush=True)
        time.sleep(120)
"""


@pytest.fixture
def start(own_home):
    processes = []

    def begin(port, *arguments):
        command = [sys.executable, "-c", textwrap.dedent(SERVER), str(port), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_ps_and_stop(start, capsys, own_home):
    assert call(capsys, "ps")[1].startswith("no server runs")
    first, second = start(8001), start(8002)
    code, out, _ = call(capsys, "ps")
    assert code == 0 and "http://127.0.0.1:8001/" in out and "model-8002" in out and str(first.pid) in out
    found = json.loads(call(capsys, "ps", "--json")[1])["servers"]
    assert [server["pid"] for server in found] == [first.pid, second.pid]
    code, _, err = call(capsys, "stop")
    assert code == 1 and "2 servers run here" in err
    assert "no server 'other'" in call(capsys, "stop", "other")[2]
    code, out, _ = call(capsys, "stop", "8002")
    assert code == 0 and f"{second.pid} (http://127.0.0.1:8002/): stopped" in out
    code, out, _ = call(capsys, "stop", "--json")
    assert code == 0 and json.loads(out) == {"stopped": [first.pid], "running": []}
    assert list((own_home / "run").iterdir()) == []


def test_a_server_that_does_not_end(start, capsys):
    process = start(8003, "stubborn")
    code, out, _ = call(capsys, "stop", "--all", "--timeout", "0.2")
    assert code == 1 and "still runs" in out and process.poll() is None
    assert call(capsys, "stop", "model-8003", "--timeout", "0.2", "--force")[0] == 0


def test_files_of_the_dead_and_the_foreign_are_not_believed(own_home):
    with running.registered("0.0.0.0", 8004, "m") as server:
        assert running.servers() == [server] and server.url == "http://127.0.0.1:8004/"
        folder = own_home / "run"
        mine = json.loads((folder / f"{os.getpid()}.json").read_text())
        wrong = {
            "1.json": {**mine, "pid": 1, "birth": "0"},  # another process has this number now
            "999999999.json": {**mine, "pid": 999999999},
            "2.json": {**mine, "pid": os.getpid()},  # the name and the content differ
            "3.json": {**mine, "pid": -1},
            "4.json": {"pid": 4},
            "5.json": [],
            "6.json": {**mine, "pid": "6"},
        }
        for name, content in wrong.items():
            (folder / name).write_text(json.dumps(content))
        assert running.servers() == [server]
        assert [path.name for path in folder.iterdir()] == [f"{os.getpid()}.json"]
    assert running.servers() == []
    assert running.Server(1, "::1", 80, "m", 0.0, "").url == "http://[::1]:80/"


def test_the_real_server_is_listed(tiny_tqn, capsys, own_home):
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "turboquant_native", "serve", str(tiny_tqn), "--port", "0", "--ctx", "64", "--slots", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not (found := running.servers()) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        assert [server.pid for server in found] == [process.pid] and found[0].model == str(tiny_tqn) and found[0].port > 0
        assert call(capsys, "stop", found[0].port)[0] == 0
        process.wait(60)
        assert running.servers() == []
    finally:
        process.kill()
        process.wait()

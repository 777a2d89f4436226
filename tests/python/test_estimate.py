"""What a conversion is said to take before it starts, and the time left while it runs."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from test_convert import convert, fails, leftovers
from tiny_models import save_llama
from turboquant_native.calibrate import estimate as estimates
from turboquant_native.calibrate import plain_estimate as plain
from turboquant_native.calibrate import request as requests
from turboquant_native.calibrate.estimate import Estimate, Speed, Stage, Work, estimate
from turboquant_native.calibrate.request import EFFORTS, Effort
from turboquant_native.common import progress
from turboquant_native.common.progress import Journey, Progress
from turboquant_native.convert.conversion import Options, make_plan
from turboquant_native.convert.sources import open_source

ONE = Speed(
    engine=1.0,
    products=1.0,
    solving=1.0,
    noise=1.0,
    feedback=1.0,
    encoding=dict.fromkeys((1, 2, 3, 4, 6, 8), 1.0),
    writing=1.0,
    logarithms=1.0,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("estimate") / "model")


@pytest.fixture
def little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(requests.EFFORTS, "fast", Effort(4, 2, seq_len=16, probes=2, sensitivity_probes=2, adjacent=3))


def of(folder: Path, effort: str = "fast", speed: Speed = ONE, chooses: bool = True) -> Estimate:
    source, work = open_source(str(folder)), EFFORTS[effort]
    asked = Work(work, work.windows, work.seq_len, samples_text=True, chooses=chooses, chooses_embeddings=not chooses, key_statistics=True)
    return estimate(source, make_plan(source, Options(embed_bits=4)), asked, speed)


def test_stages_are_those_that_run(folder: Path) -> None:
    names = [stage.name for stage in of(folder).stages]
    assert names == ["reference", "text", "sensitivity", "key statistics", "rounding (allocated)", "measuring"]
    verified = [stage.name for stage in of(folder, "normal").stages]
    assert verified == [*names[:-1], "rounding (simple rule)", "measuring", "plain rounding"]
    assert "rounding (given)" in [stage.name for stage in of(folder, chooses=False).stages]


@pytest.mark.parametrize(
    ("rate", "stage"),
    [
        ("engine", "text"),
        ("products", "rounding (allocated)"),
        ("solving", "sensitivity"),
        ("feedback", "rounding (allocated)"),
        ("writing", "reference"),
    ],
)
def test_a_faster_machine_takes_less(folder: Path, rate: str, stage: str) -> None:
    from dataclasses import replace

    slow, fast = ({found.name: found.seconds for found in of(folder, speed=speed).stages} for speed in (ONE, replace(ONE, **{rate: 1e9})))
    assert fast[stage] < slow[stage] and all(fast[name] <= seconds for name, seconds in slow.items())


def test_more_text_takes_longer_and_more_memory(folder: Path) -> None:
    fast, largest = of(folder), of(folder, "max")
    assert largest.seconds > 2 * fast.seconds and largest.memory > fast.memory and largest.disk > fast.disk


def test_rounding_counts_every_weight_once(folder: Path) -> None:
    """With everything else infinitely fast, rounding takes weights over rate."""
    far = 1e30
    only = Speed(far, far, far, far, far, dict.fromkeys((1, 2, 3, 4, 6, 8), 2.0), far, far)
    found = of(folder, speed=only)
    weights = sum(tensor.weights for tensor in make_plan(open_source(str(folder)), Options()) if tensor.spec is not None)
    rounding = sum(stage.seconds for stage in found.stages if stage.name.startswith("rounding"))
    assert rounding == pytest.approx(weights / 2.0)


def test_the_probe_measures_this_machine() -> None:
    speed = Speed.measure(1)
    rates = [speed.engine, speed.products, speed.solving, speed.feedback, speed.writing, speed.logarithms, *speed.encoding.values()]
    assert all(0 < rate < 1e16 for rate in rates)
    assert set(speed.encoding) == {1, 2, 3, 4, 6, 8} and Speed.measure(1) is speed  # measured once


def test_a_table_of_stages_and_the_whole() -> None:
    text = Estimate([Stage("text", 60, 2e9), Stage("rounding", 3600, 3e9, 5e8)]).text()
    lines = [line.split() for line in text.splitlines()]
    assert lines[1:] == [
        ["text", "1:00", "2.0", "GB", "0", "MB"],
        ["rounding", "1:00:00", "3.0", "GB", "500", "MB"],
        ["in", "all", "1:01:00", "3.0", "GB", "500", "MB"],
    ]


@pytest.mark.usefixtures("little_effort")
def test_what_does_not_fit_is_refused_before_it_starts(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(estimates, "available_memory", lambda: 1e6)
        error = fails(capsys, folder, tmp_path / "m.gguf", "--quiet")
        assert "of memory, 1 MB are free" in error and "--effort none takes least" in error
    with monkeypatch.context() as patch:
        usage = estimates.shutil.disk_usage(tmp_path)
        patch.setattr(estimates.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        error = fails(capsys, folder, tmp_path / "m.gguf", "--quiet")
        assert "of disk space until it is done" in error and "--effort none" in error
    assert leftovers(tmp_path) == []


@pytest.mark.usefixtures("little_effort")
def test_a_conversion_says_what_it_takes_and_counts_down_once(
    folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    assert convert(folder, tmp_path / "m.gguf") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("estimate") and lines[7].startswith("in all")
    shown = [line for line in lines[8:] if line]
    assert all("left in all" in line for line in shown)
    percent = [int(line.split("%")[0]) for line in shown]
    assert percent == sorted(percent) and percent[-1] == 100 and shown[-1].endswith("0:00 left in all")


def test_plain_rounding_says_what_it_takes(folder: Path, tmp_path: Path, capsys: Any) -> None:
    options = ("--effort", "none", "--bits", 4)
    assert convert(folder, tmp_path / "m.gguf", *options, "--dry-run") == 0
    table = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[0] for line in table] == ["estimate", "converting", "in"] and leftovers(tmp_path) == []
    assert convert(folder, tmp_path / "m.gguf", *options) == 0
    shown = capsys.readouterr().err.splitlines()
    assert shown[1].startswith("estimate") and shown[3].startswith("in all")


def test_the_time_of_plain_rounding_is_its_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_seconds_of_a_weight", lambda bits, threads, device: {4: 2.0, 8: 0.5}[bits])
    plan = make_plan(open_source(str(folder)), Options())  # layers at 4 bits, the embedding at 8
    packed = [(tensor.weights, tensor.spec.bits) for tensor in plan if tensor.spec is not None]
    assert {bits for _, bits in packed} == {4, 8}
    found = plain.plain_estimate(plan)
    assert found.seconds == pytest.approx(sum(weights * (2.0 if bits == 4 else 0.5) for weights, bits in packed))
    assert found.memory > 3 * 4 * max(weights for weights, _ in packed) and found.disk == 2 * sum(tensor.bytes for tensor in plan)


def test_plain_rounding_that_does_not_fit_is_refused(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "available_memory", lambda: 1e6)
    error = fails(capsys, folder, tmp_path / "m.gguf", "--effort", "none", "--bits", 8)
    assert "of memory, most of it for token_embd.weight; 1 MB are free" in error and leftovers(tmp_path) == []


# --- the line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [0.0]
    monkeypatch.setattr("turboquant_native.common.progress.time.monotonic", lambda: now[0])
    yield now


def test_time_left_follows_the_pace(clock: list[float]) -> None:
    journey = Journey({"a": 10.0, "b": 30.0}, quiet=True)
    assert journey.left == 40.0
    clock[0] = 20.0  # the first stage took twice what was estimated, so the rest will
    journey.at("a", 1.0)
    assert journey.left == pytest.approx(60.0)
    journey.at("b", 0.5)
    journey.at("b", 0.4)  # never backwards
    assert journey.left == pytest.approx(15.0 * 20 / 25)
    journey.at("b", 1.0)
    assert journey.left == 0.0


def test_a_terminal_has_one_line_and_a_log_whole_lines(clock: list[float]) -> None:
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        journey = Journey({"a": 50.0, "b": 50.0}, stream=stream)
        for step in range(1, 11):
            clock[0] += 5.0
            progress = Progress(10, "a", stream=stream, journey=journey)
            progress.advance_to(step)
        journey.at("b", 1.0)
        journey.close()
    assert terminal.getvalue().count("\n") == 1 and terminal.getvalue().count("\r") == 11
    lines = log.getvalue().splitlines()
    assert 5 <= len(lines) <= 7 and lines[-1] == "100 %  b, 0:00 left in all"  # every ten seconds


def test_an_unannounced_stage_takes_no_time(clock: list[float]) -> None:
    journey = Journey({"a": 10.0}, quiet=True)
    journey.at("something else", 0.5)
    assert journey.left == 10.0

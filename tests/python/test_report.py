"""`tqn report`: one self-contained page, every picture where its data is, readable in light and in dark."""

import base64
import json
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from tiny_models import save_llama
from turboquant_native.calibrate import request as requests
from turboquant_native.calibrate.quantizer import Quantizer
from turboquant_native.calibrate.request import Effort, Request
from turboquant_native.commands.cli import main
from turboquant_native.convert.container import CALIBRATION_KEY
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.inspection import verify
from turboquant_native.convert.sources import open_source
from turboquant_native.evaluate import charts, report


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("report")
    source = open_source(str(save_llama(folder / "model")), None, None)
    requests.EFFORTS["tiny"] = Effort(3, 2)
    Quantizer(source, folder / "a<b.gguf", Options(), Request(bpw=4, effort="tiny", auto_outliers=False, seq_len=16), threads=1).run()
    del requests.EFFORTS["tiny"]
    write_model(source, make_plan(source, Options(bits=3, outliers=0.01)), folder / "plain.gguf")
    return [folder / "a<b.gguf", folder / "plain.gguf"]


def test_page_holds_every_picture_twice(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.html"
    assert main(["report", *map(str, files), "-o", str(out), "--point", "Q4_0=4.5,0.1"]) == 0
    page = out.read_text()
    assert "a&lt;b.gguf" in page and "a<b" not in page and "not measured" in page
    light, dark = re.findall(r'<img src="([^"]*)"', page), re.findall(r'prefers-color-scheme: dark\)" srcset="([^"]*)"', page)
    assert len(light) == len(dark) == 1 + 3 + 3  # loss; bits, errors, scales of one file (no outliers); bits, outliers, scales of the other
    assert "<script" not in page and "href=" not in page and not re.findall(r'(?:src|srcset)="(?!data:)', page)  # self-contained
    for one, other in zip(light, dark, strict=True):
        drawn = [base64.b64decode(address.removeprefix("data:image/svg+xml;base64,")) for address in (one, other)]
        assert all(b"<svg" in picture and b"<script" not in picture for picture in drawn)
        assert b"#222222" in drawn[0] and b"#222222" not in drawn[1] and b"#dddddd" in drawn[1]


def test_the_loss_survives_without_the_other_file(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = json.loads(files[0].with_name(f"{files[0].name}.quant.json").read_text())["measured_kld"]
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(files[0].read_bytes())
    assert report.Quantized(alone).kld == measured and report.Quantized(files[1]).kld is None
    assert verify(alone).ok and CALIBRATION_KEY in report.Quantized(alone).file.metadata
    assert main(["info", str(alone)]) == 0
    assert f"KL divergence {measured:.3g} nats a token" in capsys.readouterr().out


def test_cells_show_the_files_widths(files: list[Path]) -> None:
    file = report.Quantized(files[1])
    assert set(file.by_place("bits").values()) == {3.0}
    assert all(8 <= value <= 11 for value in file.by_place("outliers").values())  # 1 % of the weights, rounded, per thousand
    assert len(file.by_place("bits")) == 14


@pytest.mark.parametrize("bad", ["x", "x=1", "x=1,2,3", "=1,2", "x=1,0"])
def test_bad_points_are_named(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "f.gguf", "--point", bad])
    assert "NAME=BPW,KLD" in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.setitem(sys.modules, module, None)
    for module in ("charts", "report"):
        monkeypatch.delitem(sys.modules, f"turboquant_native.evaluate.{module}")
    assert main(["report", str(files[0]), "-o", str(tmp_path / "r.html")]) == 1
    assert "pip install 'turboquant-native[report]'" in capsys.readouterr().err and not list(tmp_path.iterdir())


# --- the drawings


def figures() -> list[Figure]:
    names = [f"blk-{i}" for i in range(7)]
    lines = [charts.Series(name, [(layer, 1 + (i + layer) % 5) for layer in range(30)], True) for i, name in enumerate(names)]
    points = [
        charts.Series("these files", [(3.0, 0.128), (4.25, 0.052)], True, ["smollm2-135m-instruct-3bpw", "smollm2-135m-instruct-4.25bpw"])
    ]
    cells = {(name, str(layer)): 3.0 for name in names for layer in range(30)}
    counts, edges = np.histogram(np.random.default_rng(0).standard_normal(500), 60)
    return [
        charts.curves(lines, "layer", "error, %", whole_x=True),
        charts.curves(points, "bits per weight, whole file", "KL divergence", log=True),
        charts.grid(["a_rather_long_name_of_a_kind", *names[1:]], [str(layer) for layer in range(30)], cells, 8),
        charts.histogram(counts, edges, "log2 of a row's scale", "rows"),
    ]


@pytest.mark.parametrize("index", range(4))
def test_nothing_is_cut_off_and_nothing_covers_the_curves(index: int) -> None:
    figure = figures()[index]
    figure.draw_without_rendering()
    page, axes = figure.bbox, figure.axes[0]
    shown = [axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts]
    low_x, high_x, low_y, high_y = *axes.get_xlim(), *sorted(axes.get_ylim())
    for text in shown:
        x, y = text.get_position()
        beyond = (text in axes.get_xticklabels() and not low_x <= x <= high_x) or (
            text in axes.get_yticklabels() and not low_y <= y <= high_y
        )
        if text.get_text() and not beyond:
            box = text.get_window_extent()
            assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text
    for legend in figure.legends:
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_axes_have_several_ticks() -> None:
    """Also a logarithmic one within a decade, where matplotlib would label a single value."""
    for figure in figures():
        figure.draw_without_rendering()
        axes = figure.axes[0]
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, sorted(axes.get_ylim()))):
            labelled = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
            assert len(labelled) >= 3, (labelled, low, high)


def test_matplotlibs_settings_stay_as_they_were() -> None:
    before = dict(matplotlib.rcParams)
    charts.picture(lambda: charts.histogram(np.array([1, 2]), np.array([0.0, 1.0, 2.0]), "x", "y"), "a <picture>")
    assert dict(matplotlib.rcParams) == before

"""`tqn report`: one self-contained page, every picture where its data is."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tiny_models import save_llama
from turboquant_native.calibrate import request as requests
from turboquant_native.calibrate.quantizer import Quantizer
from turboquant_native.calibrate.request import Effort, Request
from turboquant_native.commands.cli import main
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import open_source
from turboquant_native.evaluate import report


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("report")
    source = open_source(str(save_llama(folder / "model")), None, None)
    requests.EFFORTS["tiny"] = Effort(3, 2)
    Quantizer(source, folder / "a<b.gguf", Options(), Request(bpw=4, effort="tiny", auto_outliers=False, seq_len=16), threads=1).run()
    del requests.EFFORTS["tiny"]
    write_model(source, make_plan(source, Options(bits=3, outliers=0.01)), folder / "plain.gguf")
    return [folder / "a<b.gguf", folder / "plain.gguf"]


def pictures(page: str) -> list[ET.Element]:
    return [ET.fromstring(part.split("</svg>")[0].join(("<svg", "</svg>"))) for part in page.split("<svg")[1:]]


def test_page_holds_every_picture(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.html"
    assert main(["report", *map(str, files), "-o", str(out), "--point", "Q4_0=4.5,0.1"]) == 0
    page = out.read_text()
    assert "a&lt;b.gguf" in page and "a<b" not in page
    assert "src=" not in page and "href=" not in page  # self-contained
    drawn = pictures(page)
    assert len(drawn) == 1 + 3 + 3  # Pareto; bits, errors, scales of one file (no outliers); bits, outliers, scales of the other
    circles = [element for element in drawn[0].iter() if element.tag.endswith("circle")]
    assert len(circles) == 2  # the calibrated file and the point given
    assert "Q4_0" in page and "not measured" in page


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

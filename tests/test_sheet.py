"""Sheets of results."""

import pytest
from PIL import Image

from scripts import sheet

COLORS = {"real_A": (255, 0, 0), "fake_B": (0, 255, 0)}


@pytest.fixture
def results(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c"):
        for label, color in COLORS.items():
            Image.new("RGB", (8, 6), color).save(tmp_path / "images" / f"{name}_{label}.png")
    return tmp_path


def test_a_sheet_has_a_row_for_each_label(results, capsys):
    target = results / "sheet.png"
    flags = ["--labels", "real_A", "fake_B", "--count", "2", "--scale", "3"]
    assert sheet.main([str(results), str(target), *flags]) == 0
    assert "2 columns, rows real_A, fake_B" in capsys.readouterr().out
    with Image.open(target) as image:
        gap = sheet.GAP
        assert image.size == (2 * (24 + gap) + gap, 2 * (18 + gap) + gap)
        assert image.getpixel((gap, gap)) == COLORS["real_A"]
        assert image.getpixel((image.width - gap - 1, image.height - gap - 1)) == COLORS["fake_B"]


def test_by_default_a_sheet_has_the_labels_that_there_are(results, capsys):
    assert sheet.main([str(results), str(results / "sheet.png")]) == 0
    assert "3 columns, rows real_A, fake_B" in capsys.readouterr().out


def test_a_sheet_of_one_generator(results, capsys):
    for path in (results / "images").iterdir():
        path.rename(path.with_name(path.name.replace("real_A", "real").replace("fake_B", "fake")))
    assert sheet.main([str(results), str(results / "sheet.png")]) == 0
    assert "3 columns, rows real, fake" in capsys.readouterr().out


def test_results_in_folders(results, capsys):
    (results / "images" / "more").mkdir()
    for path in (results / "images").glob("*.png"):
        path.rename(path.parent / "more" / path.name)
    assert sheet.main([str(results), str(results / "sheet.png")]) == 0
    assert "3 columns, rows real_A, fake_B" in capsys.readouterr().out


def test_missing_results_and_other_sizes_are_named(results):
    with pytest.raises(ValueError, match=r"images has no image of the label real_B: is .* a folder of test.py\?"):
        sheet.main([str(results), "x.png", "--labels", "real_B"])
    with pytest.raises(ValueError, match=r"a_real_B.png"):
        sheet.main([str(results), "x.png", "--labels", "real_A", "real_B"])
    Image.new("RGB", (9, 9)).save(results / "images" / "b_fake_B.png")
    with pytest.raises(ValueError, match=r"need one size, and .*images has 9x9 px too"):
        sheet.main([str(results), "x.png", "--labels", "real_A", "fake_B"])

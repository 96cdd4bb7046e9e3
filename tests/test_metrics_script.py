"""scripts.metrics on folders of images, and its agreement with torch-fidelity."""

import itertools
import shutil

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageFilter
from torch import nn
from torch_fidelity import calculate_metrics, feature_extractor_inceptionv3

from data.classes import sample_name
from scripts import metrics as script
from scripts.metrics import main
from tests.conftest import draw_shapes
from tests.test_scans import write_volume
from training import features


@pytest.fixture
def folders(tmp_path):
    """Eight made and eight real images of the same names."""
    for kind in ("fakes", "reals"):
        (tmp_path / kind).mkdir()
        for number in range(8):
            image = draw_shapes(f"{kind}{number}")
            image = image.filter(ImageFilter.FIND_EDGES) if kind == "fakes" else image
            image.save(tmp_path / kind / f"{number}.png")
    return tmp_path / "fakes", tmp_path / "reals"


def figures(capsys, *argv) -> dict[str, float]:
    """What the script prints: title -> value."""
    assert main(list(map(str, argv))) == 0
    lines = [line.partition(",")[0].rpartition(" ") for line in capsys.readouterr().out.splitlines()[1:]]
    return {title: float(value) for title, _, value in lines}


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A file like the one that torch-fidelity publishes, with random weights."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *args, **keywords: {})
        cls = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
        patch.setattr(cls, "load_state_dict", lambda *args, **keywords: None)
        net = cls("random", ["2048"])
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.save(net.state_dict(), path)
    return path


def test_kid_of_inception_is_that_of_torch_fidelity(folders, inception_weights, capsys):
    """The FID of these features takes a minute; tests/test_metrics.py compares it for fewer features."""
    for path in itertools.chain(*(sorted(folder.iterdir())[3:] for folder in folders)):
        path.unlink()
    theirs = calculate_metrics(
        input1=str(folders[0]), input2=str(folders[1]), kid=True, kid_subset_size=3, kid_subsets=2, cuda=False,
        feature_extractor_weights_path=str(inception_weights), cache=False, verbose=False, save_cpu_ram=True,
    )["kernel_inception_distance_mean"]  # fmt: skip
    ours = figures(capsys, *folders, "--metrics_weights", inception_weights)
    assert ours == {"KID x1000": pytest.approx(1000 * theirs, abs=0.01)}
    assert theirs > 1e-3


def test_other_files_of_weights_are_refused(folders, tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="this is not the file weights-inception"):
        main([*map(str, folders), "--metrics_weights", str(tmp_path / "other.pth")])
    with pytest.raises(ValueError, match="there is no such file"):
        main([*map(str, folders), "--metrics_weights", str(tmp_path / "missing.pth")])


def test_equal_folders_and_the_cache_of_real_features(folders, capsys, monkeypatch):
    fakes, reals = folders
    first = figures(capsys, reals, reals, "--metrics", "kid,fid,precision_recall")
    assert first.pop("KID x1000") < 0, "as if two samples were more alike than any could be"
    assert first == {"FID": pytest.approx(0, abs=0.01), "precision": 1, "recall": 1}
    other = figures(capsys, fakes, reals)["KID x1000"]
    assert other > 5

    def refuse(*args):
        raise AssertionError("the features are in the cache")

    monkeypatch.setattr(features, "write_cache", refuse)
    assert figures(capsys, fakes, reals)["KID x1000"] == other
    draw_shapes("changed").save(reals / "0.png")
    with pytest.raises(AssertionError, match="in the cache"):
        figures(capsys, fakes, reals)


def test_a_damaged_file_in_the_cache_is_computed_again(folders, capsys, caplog):
    fakes, reals = folders
    first = figures(capsys, fakes, reals)
    newest = max(features.cache_file("").parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    assert main([str(fakes), str(reals)]) == 0
    assert f"computed again: {newest} is not a readable checkpoint" in caplog.text and newest.read_bytes() == content
    capsys.readouterr()
    assert figures(capsys, fakes, reals) == first


def test_pairs_inputs_and_labels(folders, tmp_path, capsys):
    fakes, reals = folders
    made = tmp_path / "made"
    made.mkdir()
    for path in reals.glob("*.png"):
        shutil.copy(path, made / f"{path.stem}_fake_B.png")
        shutil.copy(fakes / path.name, made / f"{path.stem}_real_A.png")
    flags = ["--label", "fake_B", "--paired", "--content", "blue: B > R", "--metrics", "l1,ssim,content"]
    assert figures(capsys, made, reals, *flags) == {"L1 (0..255)": 0, "SSIM": 1, "IoU of blue": 1}
    kept = figures(capsys, fakes, reals, "--inputs", fakes, "--metrics", "content")
    assert kept["edge correlation"] == 1 and kept["mutual information (bits)"] > 0.5


def test_of_a_deep_result_the_file_with_all_values_is_compared(tmp_path):
    draw_shapes("shown", (32, 32)).save(tmp_path / "x_fake_B.png")
    for suffix in ("dcm", "tif"):
        (tmp_path / f"x_fake_B.{suffix}").touch()
        assert script.named_images(tmp_path, "fake_B") == {"x": tmp_path / f"x_fake_B.{suffix}"}
    with pytest.raises(ValueError, match="have one name"):
        script.named_images(tmp_path)


def test_label_maps_by_the_names_of_the_images(tmp_path, capsys):
    for kind, color in (("fakes", "orange"), ("reals", "blue"), ("labelsA", 9), ("labelsB", 9)):
        (tmp_path / kind).mkdir()
        for number in range(4):
            image = Image.new("L" if isinstance(color, int) else "RGB", (32, 32))
            image.paste(color, (4 + number, 8, 20 + number, 24))
            image.save(tmp_path / kind / f"{number}{'_fake_B' if kind == 'fakes' else ''}.png")
    paths = {folder.name: folder for folder in tmp_path.iterdir()}
    flags = ["--label_dir", f"A={paths['labelsA']},B={paths['labelsB']}", "--metrics", "content"]
    good = figures(capsys, paths["reals"], paths["reals"], *flags)
    assert good["IoU of 9"] > 0.85 and good["IoU of 0"] > 0.9
    other = figures(capsys, paths["fakes"], paths["reals"], "--label", "fake_B", *flags)
    assert other["IoU of 9"] < good["IoU of 9"]
    (paths["labelsA"] / "2.png").unlink()
    with pytest.raises(ValueError, match="labelsA has no label map named 2"):
        main([str(paths["reals"]), str(paths["reals"]), *flags])


def test_classes(tmp_path, capsys, monkeypatch):
    """Made dogs look like cats. Samples of test.py have the class in their names, also with the label of a page."""
    monkeypatch.setattr(script, "ENOUGH", 10)
    for name, count in (("cat", 12), ("dog", 12), ("e.t", 9)):
        (tmp_path / "reals" / name).mkdir(parents=True)
        for number in range(count):
            drawn(name, number).save(tmp_path / "reals" / name / f"{number}.png")
    (tmp_path / "fakes").mkdir()
    for number in range(10):
        drawn("cat", 20 + number).save(tmp_path / "fakes" / f"{sample_name(number, 'cat')}_sample.png")
        drawn("cat", 30 + number).save(tmp_path / "fakes" / f"{sample_name(number, 'dog')}_sample.png")
    drawn("e.t", 20).save(tmp_path / "fakes" / f"{sample_name(1, 'e.t')}_sample.png")
    flags = [str(tmp_path / "fakes"), str(tmp_path / "reals"), "--label", "sample", "--class_of", "folder"]
    assert main(flags) == 0
    heading, cat, dog, alien, few, accuracy = capsys.readouterr().out.splitlines()[2:]
    assert heading.split() == ["class", "made", "real", "right", "of", "real", "KID", "x1000"]
    assert cat.split()[:5] == ["cat", "10", "12", "1.000", "1.000"]
    assert dog.split()[:5] == ["dog", "10", "12", "0.000", "1.000"]
    assert dog.endswith(" " + "#" * script.BAR) and float(cat.split()[5]) < float(dog.split()[5])
    assert alien.split() == ["e.t", "1", "9", "1.000", "1.000", "-"]
    assert few == "no KID of classes with fewer than 10 made or real images: e.t"
    assert accuracy == "class accuracy 0.667; of real images, left out: 1.000; by chance: 0.333"
    shutil.rmtree(tmp_path / "reals" / "e.t")
    with pytest.raises(ValueError, match=r"e-t\.png is of the class 'e-t'\. The real images are of cat, dog"):
        main(flags)


def drawn(name: str, number: int) -> Image.Image:
    """An image of one of three kinds: shapes, their edges, or gray ones."""
    image = draw_shapes(f"{name}{number}", (64, 64))
    if name == "dog":
        return image.filter(ImageFilter.FIND_EDGES)
    return image.filter(ImageFilter.GaussianBlur(12)).convert("L") if name == "e.t" else image


def test_mistakes_are_named(folders, tmp_path):
    fakes, reals = map(str, folders)
    for wrong in (["l1"], ["fid", "--class_of", "folder"]):
        with pytest.raises(SystemExit):
            main([fakes, reals, "--metrics", *wrong])
    (folders[1] / "3.png").unlink()
    with pytest.raises(ValueError, match=r"reals lacks 1 of the 8 names in .*fakes, such as 3"):
        main([fakes, reals, "--paired"])
    Image.new("RGB", (7, 9)).save(folders[1] / "3.png")
    with pytest.raises(ValueError, match=r"3\.png is 40x36 pixels, but its truth is 7x9"):
        main([fakes, reals, "--paired", "--metrics", "l1"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no images"):
        main([str(tmp_path / "empty"), reals])
    (tmp_path / "results").mkdir()
    for kind in ("real_A", "fake_B"):
        draw_shapes("one").save(tmp_path / "results" / f"1_{kind}.png")
    with pytest.raises(ValueError, match=r"results has images of several kinds, fake_B, real_A: choose one by --label"):
        main([str(tmp_path / "results"), reals])
    (tmp_path / "one").mkdir()
    draw_shapes("one").save(tmp_path / "one" / "1.png")
    with pytest.raises(ValueError, match="kid needs at least 2 images of each kind, not 1 made and 8 real"):
        main([str(tmp_path / "one"), reals])


def test_gray_deep_and_differently_large_images_are_compared(folders, capsys):
    fakes, reals = folders
    draw_shapes("gray", (64, 20)).convert("L").save(fakes / "0.png")
    Image.fromarray((torch.arange(30 * 30).view(30, 30) * 70).numpy().astype("uint16")).save(fakes / "1.png")
    assert figures(capsys, fakes, reals)["KID x1000"] > 0


def test_ranges_of_values_of_deep_files(folders, tmp_path, capsys):
    """CT from MR of another range."""
    generator = np.random.default_rng(0)
    made, true = generator.uniform(-1024, 3072, (2, 20, 24)).astype(np.int16)
    for kind, array in {"made": made, "true": true, "inputs": ((made + 1024.0) / 4096 * 500).astype(np.int16)}.items():
        (tmp_path / kind).mkdir()
        tifffile.imwrite(tmp_path / kind / "0.tif", array)
    pair = [str(tmp_path / kind) for kind in ("made", "true")]
    flags = ["--paired", "--metrics", "l1"]
    with pytest.raises(ValueError, match="and value_range is not set"):
        main([*pair, *flags])
    error = np.abs(made.astype(float) - true).mean() / 4096 * 255
    assert figures(capsys, *pair, *flags, "--value_range=-1024,3072") == {"L1 (0..255)": pytest.approx(error, abs=0.1)}
    flags = ["--inputs", tmp_path / "inputs", "--content", "bright: R > 127", "--value_range=-1024,3072"]
    assert figures(capsys, *pair, "--metrics", "content", *flags) == {"IoU of bright": 0}
    assert figures(capsys, *pair, "--metrics", "content", *flags, "--value_range_A=0,500")["IoU of bright"] > 0.9
    for flag in ("--value_range", "--value_range_A"):
        with pytest.raises(ValueError, match=f"{flag} 0,9: these images have 8 bits"):
            main([*map(str, folders), flag, "0,9", "--inputs", str(folders[0])])


def test_slices_of_volumes_are_images(tmp_path, capsys):
    write_volume(tmp_path / "a.nii.gz")
    assert figures(capsys, tmp_path, tmp_path, "--metrics", "kid", "--value_range", "0,1000")["KID x1000"] < 0

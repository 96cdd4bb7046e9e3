"""DICOM, NIfTI and GeoTIFF: small real files, written by their libraries, go through every entrance and come back."""

from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pydicom
import pytest
import rasterio
import torch
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from rasterio.transform import from_origin

import test as testing
from data import nifti
from data.dicom import read_dicom
from data.dicom import write_dicom as write_dicom_file
from data.geotiff import is_georeferenced
from data.image_file import ImageReader, describe, image_size
from data.image_folder import list_images
from inference import Translator
from inference.translator import as_tensor
from inference.windows import Scene
from models.networks import GENERATORS
from scripts import translate
from tests.test_cli import train
from util.images import PixelFormat

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2.0, 0, -126], [0, 0, 3.0, -72], [0, 0, 0, 1]])


def values(*shape: int, low: float = 0, high: float = 1000) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(low, high, shape)


def write_volume(path, depth=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values(24, 20, depth).astype(np.int16), AFFINE), path)


def write_dicom(path, low=-1000, high=1000, frames=1, own_scales=False):
    """Write a CT image; of several frames, optionally with a slope for each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scan = pydicom.Dataset()
    scan.file_meta = FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan.SOPClassUID = scan.file_meta.MediaStorageSOPClassUID = CTImageStorage
    scan.SOPInstanceUID = scan.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    scan.SeriesInstanceUID, scan.PatientName, scan.PixelSpacing = generate_uid(), "Test^Patient", [0.5, 0.5]
    shape = (frames, 20, 24) if frames > 1 else (20, 24)
    pixels = (values(*shape, low=low, high=high).round() + 1024).astype(np.uint16)
    scan.Rows, scan.Columns, scan.SamplesPerPixel, scan.PhotometricInterpretation = 20, 24, 1, "MONOCHROME2"
    scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 16, 16, 15, 0
    scan.RescaleSlope, scan.RescaleIntercept = "1", "-1024"
    slopes = np.ones(len(pixels), int)
    if frames > 1:
        scan.NumberOfFrames = frames
    if own_scales:
        slopes += np.arange(frames)
        groups = [pydicom.Dataset() for _ in slopes]
        for group, slope in zip(groups, slopes, strict=True):
            scale = pydicom.Dataset()
            scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = str(slope), "-1024", "HU"
            group.PixelValueTransformationSequence = [scale]
        scan.PerFrameFunctionalGroupsSequence = groups
    scan.PixelData = pixels.tobytes()
    scan.save_as(path, enforce_file_format=True)
    return pixels.astype(int) * (slopes[:, None, None] if own_scales else 1) - 1024


def write_scene(path, dtype="int16", nodata=-9999, *, bands=2, height=20, width=24, **layout):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = values(bands, height, width, high=250 if dtype == "uint8" else 1000).astype(dtype)
    bands[:, :4, :5] = nodata
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=len(bands), dtype=dtype, crs="EPSG:32632",
        transform=from_origin(500000, 5400000, 10, 10), nodata=nodata, **layout,
    ) as scene:  # fmt: skip
        scene.write(bands)
    return bands


def run_of(root, channels, *ranges):
    """A run that is trained on the files in root/data."""
    flags = ["--input_nc", channels, "--output_nc", channels, "--preprocess", "none", "--n_epochs_decay", "0"]
    run = train(root, "--dataroot", root / "data", *flags, "--netD", "pixel", "--no_html", *ranges)
    return run, ["--checkpoints_dir", str(root), "--name", "run", "--device", "cpu"]


def test_volumes_are_slices_and_come_back_as_volumes(tmp_path):
    for folder in ("trainA", "trainB", "testA", "testB"):
        write_volume(tmp_path / "data" / folder / "sub" / "a.nii.gz")
        write_volume(tmp_path / "data" / folder / "b.nii", depth=2)
    paths = list_images(tmp_path / "data" / "testA")
    assert len(paths) == 5 and image_size(paths[0]) == (24, 20) and describe(paths[0]) == "NIFTI int16, 1 channel"
    run, places = run_of(tmp_path, 1, "--value_range", "0,1000")
    results = tmp_path / "results"
    assert testing.main([*places, "--results_dir", str(results)]) == 0
    source = tmp_path / "data" / "testA" / "sub" / "a.nii.gz"
    assert translate.main([str(source), str(tmp_path / "one.nii.gz"), *places]) == 0
    assert translate.main([str(tmp_path / "data" / "testA"), str(tmp_path / "out"), *places]) == 0
    images = results / "run" / "test_latest" / "images"
    translator, original = Translator.load(run, device="cpu"), nibabel.load(source)
    made = [nibabel.load(path) for path in (
        images / "sub" / "a_fake_B.nii.gz", tmp_path / "one.nii.gz", tmp_path / "out" / "sub" / "a.nii.gz"
    )]  # fmt: skip
    for volume in made:
        assert volume.shape == original.shape and np.array_equal(volume.affine, original.affine)
        assert volume.get_data_dtype() == np.int16
        for z in range(3):
            turned = np.asarray(original.dataobj)[:, :, z].T[::-1]
            assert np.array_equal(translator(turned.copy())[::-1].T, np.asarray(volume.dataobj)[:, :, z])
    assert (images / "b_fake_B.nii").is_file() and (images / "sub" / "a.nii.gz" / "0002_fake_B.png").is_file()
    with pytest.raises(ValueError, match=r"the result of a volume is a volume, whose name ends in \.nii or \.nii\.gz"):
        translate.main([str(source), str(tmp_path / "one.png"), *places])
    (tmp_path / "data" / "testA" / "b.nii").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"Cannot read the image .*b\.nii"):
        translate.main([str(tmp_path / "data" / "testA"), str(tmp_path / "out"), *places])


def test_dicom_is_read_in_its_unit_and_comes_back_as_dicom(tmp_path, capsys):
    for folder in ("trainA", "trainB", "testA", "testB"):
        for number in range(2):
            hounsfield = write_dicom(tmp_path / "data" / folder / f"{number}.dcm")
    source = tmp_path / "data" / "testA" / "1.dcm"
    read = ImageReader(channels=1, value_range=(-1000, 1000))(source)
    assert torch.allclose(read[0], torch.from_numpy(hounsfield / 1000).float(), atol=1e-6)
    run, places = run_of(tmp_path, 1, "--value_range=-1000,1000")
    assert testing.main([*places, "--results_dir", str(tmp_path / "results")]) == 0
    assert translate.main([str(source), str(tmp_path / "one.dcm"), *places]) == 0
    images = tmp_path / "results" / "run" / "test_latest" / "images"
    expected = Translator.load(run, device="cpu")(hounsfield.astype(np.int32))
    for path in (images / "1_fake_B.dcm", tmp_path / "one.dcm"):
        scan, before = pydicom.dcmread(path), pydicom.dcmread(source)
        assert np.array_equal(scan.pixel_array * scan.RescaleSlope + scan.RescaleIntercept, expected)
        assert (scan.PatientName, scan.PixelSpacing) == (before.PatientName, before.PixelSpacing)
        assert scan.SOPInstanceUID != before.SOPInstanceUID and scan.ImageType[0] == "DERIVED"
        assert np.allclose(ImageReader(channels=1, value_range=(-1000, 1000))(path)[0] * 1000, expected, atol=1e-2)
    series = [pydicom.dcmread(images / f"{number}_fake_B.dcm").SeriesInstanceUID for number in range(2)]
    assert all(uid != pydicom.dcmread(source).SeriesInstanceUID for uid in series)


@pytest.mark.parametrize(("dtype", "nodata"), [("int16", -9999), ("float32", np.nan), ("float32", -9999.0)])
def test_scenes_keep_their_georeference_and_missing_pixels(dtype, nodata, tmp_path):
    for folder in ("trainA", "trainB", "testA", "testB"):
        bands = write_scene(tmp_path / "data" / folder / "0.tif", dtype, nodata)
    run, places = run_of(tmp_path, 2, "--value_range", "0,1000")
    assert testing.main([*places, "--results_dir", str(tmp_path / "results")]) == 0
    source = tmp_path / "data" / "testA" / "0.tif"
    assert translate.main([str(source), str(tmp_path / "one.tif"), *places]) == 0
    missing = np.isnan(bands) | (bands == nodata)
    filled = np.where(missing, bands[~missing].min(), bands).transpose(1, 2, 0)
    expected = Translator.load(run, device="cpu")(np.ascontiguousarray(filled)).transpose(2, 0, 1)
    for path in (tmp_path / "results" / "run" / "test_latest" / "images" / "0_fake_B.tif", tmp_path / "one.tif"):
        with rasterio.open(path) as made, rasterio.open(source) as scene:
            assert made.crs == scene.crs and made.transform == scene.transform and made.dtypes == scene.dtypes
            assert np.array_equal(made.read_masks(), scene.read_masks()) and made.read_masks().min() == 0
            assert np.array_equal(made.read()[~missing], expected[~missing])


@pytest.mark.parametrize(
    ("dtype", "nodata", "layout"),
    [
        ("int16", -9999, {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "lzw"}),
        ("float32", np.nan, {"interleave": "band"}),
    ],
)
def test_large_scenes_are_read_and_written_in_windows(dtype, nodata, layout, tmp_path, monkeypatch):
    """A scene with more pixels than are read whole becomes in tiles what it becomes whole."""
    write_scene(tmp_path / "in.tif", dtype, nodata, height=45, width=61, **layout)
    torch.manual_seed(0)
    torch.save(GENERATORS["resnet_6blocks"](2, 2, ngf=8).state_dict(), tmp_path / "net.pth")

    def translated(name, *flags):
        argv = ["--weights", str(tmp_path / "net.pth"), "--value_range", "0,1000", "--device", "cpu"]
        assert translate.main([str(tmp_path / "in.tif"), str(tmp_path / name), *argv, *flags]) == 0
        return rasterio.open(tmp_path / name)

    with translated("whole.tif") as expected:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(ValueError, match="it has 61x45 pixels; 1 to 1,000 can be read"):
            translated("refused.tif")
        with translated("tiled.tif", "--tile", "32", "--tile_overlap", "16") as made:
            assert (made.crs, made.transform, made.dtypes) == (expected.crs, expected.transform, expected.dtypes)
            assert np.array_equal(made.read_masks(), expected.read_masks()) and made.read_masks().min() == 0
            np.testing.assert_allclose(made.read(), expected.read(), atol=2, rtol=0)
            assert made.read(masked=True).std() > 20, "the test compares something"


@pytest.mark.parametrize("bands", [1, 3])
def test_missing_pixels_of_8_bits_are_filled(bands, tmp_path):
    """Whether the file is read whole or in windows."""
    write_scene(tmp_path / "in.tif", "uint8", 255, bands=bands, photometric="RGB" if bands == 3 else "MINISBLACK")
    whole = as_tensor(ImageReader(channels=3)(tmp_path / "in.tif"), channels=3)
    assert (whole[:, :4, :5] == whole.min()).all() and whole.max() > 0.9
    scene = Scene(tmp_path / "in.tif", channels=3, value_range=None)
    torch.testing.assert_close(scene.read(((0, 20), (0, 24)))[0], whole)
    scene.close()


def test_results_that_cannot_hold_missing_pixels_are_refused_before_work(tmp_path):
    write_scene(tmp_path / "in.tif")
    scene = Scene(tmp_path / "in.tif", channels=2, value_range=(0, 1000))
    with pytest.raises(ValueError, match=r"uint8 cannot hold -9999, which marks pixels without data in .*in\.tif"):
        scene.writer(tmp_path / "out.tif", 2, PixelFormat())
    scene.close()


def test_results_of_other_sizes_are_no_scans(tmp_path, capsys):
    for folder in ("trainA", "trainB", "testA", "testB"):
        write_volume(tmp_path / "data" / folder / "a.nii.gz")
    _, places = run_of(tmp_path, 1, "--value_range", "0,1000")
    resized = ["--preprocess", "resize_and_crop", "--crop_size", "32", "--results_dir", str(tmp_path / "results")]
    assert testing.main([*places, *resized]) == 0
    assert (
        "12 results are not written as scans, since they have other sizes than their files" in capsys.readouterr().out
    )
    assert not list(tmp_path.rglob("*_fake_B.nii*"))
    torch.save(GENERATORS["resnet_6blocks"](1, 1, ngf=8).state_dict(), tmp_path / "net.pth")
    argv = ["--weights", str(tmp_path / "net.pth"), "--dataroot", str(tmp_path / "data" / "testA"), "--num_test", "2"]
    argv += ["--preprocess", "none", "--value_range", "0,1000", "--results_dir", str(tmp_path / "few")]
    assert testing.main(argv) == 0
    assert "is not written: 2 of the 3 slices of" in capsys.readouterr().out


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_along_other_axes(axis, tmp_path):
    for folder in ("trainA", "trainB", "testA", "testB"):
        write_volume(tmp_path / "data" / folder / "a.nii.gz", depth=28)
    source = tmp_path / "data" / "testA" / "a.nii.gz"
    original = nibabel.load(source)
    paths = list_images(tmp_path / "data" / "testA", slice_axis=axis)
    assert len(paths) == original.shape[axis] and image_size(paths[0]) == ((20, 28) if axis == 0 else (24, 28))
    run, places = run_of(tmp_path, 1, "--value_range", "0,1000", "--slice_axis", str(axis), "--max_dataset_size", "2")
    results = ["--results_dir", str(tmp_path / "results"), "--max_dataset_size", "inf"]
    assert testing.main([*places, *results]) == 0
    assert translate.main([str(source), str(tmp_path / "one.nii.gz"), *places]) == 0
    assert translate.main([str(source.parent), str(tmp_path / "out"), *places]) == 0
    translator = Translator.load(run, device="cpu")
    images = tmp_path / "results" / "run" / "test_latest" / "images"
    for path in (images / "a_fake_B.nii.gz", tmp_path / "one.nii.gz", tmp_path / "out" / "a.nii.gz"):
        volume = nibabel.load(path)
        assert volume.shape == original.shape and np.array_equal(volume.affine, original.affine)
        for index in (0, 3):
            made, slice_ = (np.asarray(image.dataobj).take(index, axis) for image in (volume, original))
            assert np.array_equal(made, translator(np.ascontiguousarray(slice_.T[::-1]))[::-1].T)
    assert translate.main([str(source), str(tmp_path / "last.nii.gz"), *places, "--slice_axis", "2"]) == 0
    assert not np.array_equal(nibabel.load(tmp_path / "last.nii.gz").dataobj, volume.dataobj)


@pytest.mark.parametrize("own_scales", [False, True])
def test_frames_of_dicom_are_slices_and_come_back_as_frames(own_scales, tmp_path):
    for folder in ("trainA", "trainB", "testA", "testB"):
        hounsfield = write_dicom(tmp_path / "data" / folder / "a.dcm", frames=3, own_scales=own_scales)
        write_dicom(tmp_path / "data" / folder / "b.dcm")
    source = tmp_path / "data" / "testA" / "a.dcm"
    frames = list_images(source.parent)[:-1]
    assert frames == [source / f"000{index}" for index in range(3)] and image_size(frames[0]) == (24, 20)
    run, places = run_of(tmp_path, 1, "--value_range=-1024,6000")
    assert testing.main([*places, "--results_dir", str(tmp_path / "results")]) == 0
    assert translate.main([str(source), str(tmp_path / "one.dcm"), *places]) == 0
    assert translate.main([str(source.parent), str(tmp_path / "out"), *places]) == 0
    images = tmp_path / "results" / "run" / "test_latest" / "images"
    expected = [Translator.load(run, device="cpu")(frame.astype(np.int32)) for frame in hounsfield]
    for path in (images / "a_fake_B.dcm", tmp_path / "one.dcm", tmp_path / "out" / "a.dcm"):
        scan = pydicom.dcmread(path)
        assert scan.NumberOfFrames == 3 and scan.PatientName == "Test^Patient"
        for index, frame in enumerate(expected):
            read = ImageReader(channels=1, value_range=(-1024, 6000))(path / f"000{index}")[0]
            assert np.allclose((read + 1) * 3512 - 1024, frame, atol=0.01)
    assert (images / "b_fake_B.dcm").is_file() and (tmp_path / "out" / "b.dcm").is_file()
    with pytest.raises(ValueError, match=r"the result of a volume is a volume, whose name ends in \.dcm"):
        translate.main([str(source), str(tmp_path / "one.png"), *places])
    with pytest.raises(ValueError, match=r"it has 3 frames, which are .*a\.dcm.0000 and so on"):
        ImageReader(channels=1, value_range=(0, 1))(source)


def test_files_that_are_no_tiff_are_not_scenes(tmp_path):
    (tmp_path / "empty.tif").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "png.tif", "PNG")
    assert not is_georeferenced(tmp_path / "empty.tif") and not is_georeferenced(tmp_path / "png.tif")


def test_threads_unpack_a_volume_once(tmp_path):
    write_volume(tmp_path / "v.nii.gz", depth=64)
    nifti._values.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: nifti.read_slice(tmp_path / "v.nii.gz", 2, index), range(64)))
    assert nifti._values.cache_info().misses == 1


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("frames", [1, 2])
def test_white_is_the_larger_value_of_dicom(signed, frames, tmp_path):
    source = tmp_path / "white_is_small.dcm"
    write_dicom(source, frames=frames)
    indices = range(frames) if frames > 1 else [None]
    plain = [read_dicom(source, index) for index in indices]
    scan = pydicom.dcmread(source)
    scan.PhotometricInterpretation, scan.PresentationLUTShape, scan.WindowCenter = "MONOCHROME1", "INVERSE", 40
    pixels = scan.pixel_array
    scan.PixelRepresentation = int(signed)
    scan.PixelData = (~pixels.astype(np.int16) if signed else 65535 - pixels).tobytes()
    scan.save_as(source)
    found = [read_dicom(source, index) for index in indices]
    assert all(np.array_equal(a, b) for a, b in zip(found, plain, strict=True))
    write_dicom_file(np.stack(found) if frames > 1 else found[0], tmp_path / "made.dcm", source)
    made = pydicom.dcmread(tmp_path / "made.dcm")
    assert (made.PhotometricInterpretation, made.PresentationLUTShape) == ("MONOCHROME2", "IDENTITY")
    assert "WindowCenter" not in made
    assert np.array_equal(read_dicom(tmp_path / "made.dcm", indices[0]), plain[0])

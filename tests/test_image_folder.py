"""Listing images, and errors about the user's folders."""

import errno
import os
from pathlib import Path

import pytest

from data.image_folder import DataError, any_images, domain_images, list_images


def test_listing_is_sorted_and_skips_hidden_files(tmp_path):
    hidden = [".c.png", ".ipynb_checkpoints/d.png"]
    for name in ["b.JPG", "a/z.png", "a.bmp", "A.tiff", "10.ppm", "9.ppm", "e.svg", *hidden]:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    expected = ["10.ppm", "9.ppm", "A.tiff", "a.bmp", "a/z.png", "b.JPG"]
    assert [path.relative_to(tmp_path / "images").as_posix() for path in list_images(tmp_path / "images")] == expected
    assert len(list_images(tmp_path)) == 2 * len(expected)


def message_of(dataroot, phase="train", domain="A"):
    with pytest.raises(DataError) as caught:
        domain_images(dataroot, phase, domain)
    return str(caught.value)


def test_a_missing_folder_shows_the_expected_and_the_found_tree(tiny_data):
    found = "\n".join(f"  {folder}/  5 images" for folder in ("testA", "testB", "trainA", "trainB"))
    assert message_of(tiny_data, phase="val") == (
        f"dataroot={tiny_data}: there is no folder valA in it.\nExpected:\n{tiny_data}/\n"
        f"  valA/  images of domain A\n  valB/  images of domain B\nFound:\n{tiny_data}/  0 images\n{found}"
    )


@pytest.mark.parametrize(
    ("existing", "dataroot", "hint", "remedy"),
    [
        ("maps/maps/trainA", "maps", "There is a folder trainA in {root}/maps/maps.", "maps/maps"),
        ("maps/trainA", "maps/trainA", "There is a folder trainA in {root}/maps.", "maps"),
        ("maps/trainA", "mpas", "There is a folder trainA in {root}/maps.", "maps"),
        ("maps/TrainA", "maps", "Rename {root}/maps/TrainA to {root}/maps/trainA, then use dataroot={root}/maps.", ""),
        (
            "maps/train/A",
            "maps",
            "Rename {root}/maps/train/A to {root}/maps/trainA, then use dataroot={root}/maps.",
            "",
        ),
        (
            "maps/train_A",
            "maps",
            "Rename {root}/maps/train_A to {root}/maps/trainA, then use dataroot={root}/maps.",
            "",
        ),
    ],
)
def test_a_near_match_is_offered(tmp_path, existing, dataroot, hint, remedy):
    (tmp_path / existing).mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        domain_images(tmp_path / dataroot, "train", "A")
    assert str(caught.value).splitlines()[-1] == hint.format(root=tmp_path)
    assert caught.value.remedy == ({"dataroot": str(tmp_path / remedy)} if remedy else {})


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "trainA").mkdir()
    assert message_of(tmp_path).startswith(f"No image in {tmp_path / 'trainA'}: ")
    with pytest.raises(DataError, match="No image in "):
        any_images(tmp_path, "test", "A")
    with pytest.raises(DataError, match="no such folder"):
        any_images(tmp_path / "missing", "test", "A")


def test_links_to_a_parent_folder_are_not_followed(tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "a.png").touch()
    for link in ("sub/up", "sub/deep/up"):
        (tmp_path / link).symlink_to("..")
    (tmp_path / "sub" / "deep" / "top").symlink_to(tmp_path)
    assert list_images(tmp_path) == [tmp_path / "sub" / "a.png"]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    scandir = os.scandir

    def refused(folder):
        if Path(folder).name == "sub":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"sub: Permission denied. Its images would be left out"):
        list_images(tmp_path)

"""Finding and reading images, and the errors about a user's folders and files."""

import pytest
from PIL import Image

from data.image_file import image_size, read_image
from data.image_folder import DataError, any_images, domain_images, list_images
from tests.conftest import draw_shapes


def test_listing_is_sorted_and_leaves_out_what_is_hidden(tmp_path):
    hidden = [".c.png", ".ipynb_checkpoints/d.png"]
    for name in ["b.JPG", "a/z.png", "a.bmp", "A.tiff", "10.ppm", "9.ppm", "e.gif", *hidden]:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    expected = ["10.ppm", "9.ppm", "A.tiff", "a.bmp", "a/z.png", "b.JPG"]
    assert [path.relative_to(tmp_path / "images").as_posix() for path in list_images(tmp_path / "images")] == expected
    assert len(list_images(tmp_path)) == 2 * len(expected)


def saved(image, path, **keywords):
    image.save(path, **keywords)
    return read_image(path)


def test_odd_images_come_out_as_sensible_rgb(tmp_path):
    image = draw_shapes("a")
    flat = Image.new("RGB", (8, 8), (200, 100, 50))
    assert saved(image.quantize(256), tmp_path / "palette.png").getpixel((3, 3)) == image.getpixel((3, 3))
    assert saved(Image.new("1", (8, 8), 1), tmp_path / "bits.png").getpixel((0, 0)) == (255, 255, 255)
    assert saved(image.convert("L"), tmp_path / "grey.png").tobytes() == image.convert("L").convert("RGB").tobytes()
    assert saved(image.convert("RGBA"), tmp_path / "opaque.png").tobytes() == image.tobytes()
    assert saved(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert saved(Image.new("LA", (8, 8), (0, 255)), tmp_path / "la.png").getpixel((0, 0)) == (0, 0, 0)
    cmyk = saved(flat.convert("CMYK"), tmp_path / "cmyk.jpg", quality=95).getpixel((4, 4))
    assert all(abs(got - wanted) < 6 for got, wanted in zip(cmyk, (200, 100, 50), strict=True))


def test_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    image = draw_shapes("a", (40, 20))
    upright = saved(image, tmp_path / "a.png", exif=exif)
    assert upright.size == image_size(tmp_path / "a.png") == (20, 40)
    assert upright.tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_more_than_8_bits_is_an_error_with_a_name(tmp_path):
    Image.new("I;16", (8, 8), 999).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png has more than 8 bits"):
        read_image(tmp_path / "deep.png")


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"Cannot read the image .*text\.png"):
            read(tmp_path / "text.png")


def message_of(dataroot, phase="train", domain="A"):
    with pytest.raises(DataError) as caught:
        domain_images(dataroot, phase, domain)
    return str(caught.value)


def test_a_missing_folder_shows_the_expected_and_the_found_tree(tiny_data):
    found = "\n".join(f"  {folder}/  5 images" for folder in ("testA", "testB", "trainA", "trainB"))
    assert message_of(tiny_data, phase="val") == (
        f"--dataroot {tiny_data}: there is no folder valA in it.\nExpected:\n{tiny_data}/\n"
        f"  valA/  images of domain A\n  valB/  images of domain B\nFound:\n{tiny_data}/  0 images\n{found}"
    )


@pytest.mark.parametrize(
    ("existing", "dataroot", "hint"),
    [
        ("maps/maps/trainA", "maps", "Did you mean --dataroot {root}/maps/maps?"),
        ("maps/trainA", "maps/trainA", "Did you mean --dataroot {root}/maps?"),
        ("maps/trainA", "mpas", "Did you mean --dataroot {root}/maps?"),
        ("maps/TrainA", "maps", "Rename {root}/maps/TrainA to {root}/maps/trainA, then use --dataroot {root}/maps."),
        ("maps/train/A", "maps", "Rename {root}/maps/train/A to {root}/maps/trainA, then use --dataroot {root}/maps."),
        ("maps/train_A", "maps", "Rename {root}/maps/train_A to {root}/maps/trainA, then use --dataroot {root}/maps."),
    ],
)
def test_a_near_match_is_offered(tmp_path, existing, dataroot, hint):
    (tmp_path / existing).mkdir(parents=True)
    assert message_of(tmp_path / dataroot).splitlines()[-1] == hint.format(root=tmp_path)


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "trainA").mkdir()
    assert message_of(tmp_path).startswith(f"No image in {tmp_path / 'trainA'}: ")
    with pytest.raises(DataError, match="No image in "):
        any_images(tmp_path, "test", "A")
    with pytest.raises(DataError, match="no such folder"):
        any_images(tmp_path / "missing", "test", "A")

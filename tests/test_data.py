"""Datasets and their data loader."""

import itertools
import multiprocessing
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data import EpochSampler, create_dataset
from data.image_file import image_size
from data.image_folder import DataError, list_images
from data.unaligned_dataset import UnalignedDataset
from options.test_options import TestOptions
from options.train_options import TrainOptions
from tests.conftest import draw_shapes
from tests.helpers import PATIENCE, more_workers_than_cores
from util.paths import BUNDLED

# From Python 3.12 on: a DataLoader forks workers beside the threads that feed earlier workers.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def opt_train(dataroot, *flags):
    sizes = ["--load_size", "28", "--crop_size", "24", "--device", "cpu"]
    return TrainOptions().parse(["--dataroot", str(dataroot), *sizes, *flags])


def opt_test(dataroot, *flags):
    return TestOptions().parse(["--dataroot", str(dataroot), "--crop_size", "24", "--device", "cpu", *flags])


def contents(loader, epoch=1, skip=0):
    """All batches of one pass over the loader, comparable with ==."""
    loader.sampler.set_epoch(epoch, skip)
    return [
        {key: value if isinstance(value, list) else value.numpy().tobytes() for key, value in batch.items()}
        for batch in loader
    ]


def names(paths):
    return [Path(path).name for path in paths]


# ---- the bundled data

COUNTS = {
    "chart": {"trainA": 929, "trainB": 940, "valA": 71, "valB": 60, "testA": 83, "testB": 83},
    "emoji": {"trainA": 766, "trainB": 764, "valA": 67, "valB": 63, "testA": 100, "testB": 100},
    "cats": {"trainA": 2000, "valA": 200, "testA": 200},
}


@pytest.mark.parametrize(("name", "counts"), COUNTS.items())
def test_bundled_images_are_all_there_each_in_one_phase(name, counts):
    folders = {folder: list_images(BUNDLED / name / folder) for folder in counts}
    assert {folder: len(paths) for folder, paths in folders.items()} == counts
    assert {image_size(path) for paths in folders.values() for path in paths[:: len(paths) // 5]} == {(64, 64)}
    for one, other in itertools.combinations(folders, 2):
        if {one, other} != {"testA", "testB"}:
            assert not {Path(path).name for path in folders[one]} & {Path(path).name for path in folders[other]}
    assert "licen" in (BUNDLED / name / "README.md").read_text().lower()


@pytest.mark.parametrize(
    ("flags", "saved", "logged"),
    [([], {}, True), (["--dataroot", str(BUNDLED / "chart")], {}, False), ([], {"dataroot": "chart"}, False)],
    ids=["no dataroot", "given", "saved with the run"],
)
def test_the_bundled_images_are_mentioned_only_if_no_dataroot_was_given_or_saved(flags, saved, logged, capsys):
    saved = {name: str(BUNDLED / folder) for name, folder in saved.items()}
    opt = TestOptions().parse(["--device", "cpu", *flags], saved)
    assert Path(opt.dataroot) == BUNDLED / "chart"
    create_dataset(opt)
    assert ("using the bundled images" in capsys.readouterr().out) == logged


@pytest.mark.parametrize(("folder", "count"), [("chart", 83), ("emoji", 100)])
def test_bundled_test_images_are_pairs(folder, count):
    dataset = UnalignedDataset(opt_test(BUNDLED / folder, "--load_size", "24"))
    assert len(dataset) == count
    assert names(dataset.A_paths) == names(dataset.B_paths)


# ---- samples are functions of (seed, epoch, index)


def test_a_resumed_run_keeps_its_workers(tiny_data):
    for flags, workers in ((["--num_threads", "1"], 1), ([], 0)):
        opt = opt_train(tiny_data, "--gpu_ids", "-1", *flags)
        assert create_dataset(TrainOptions().parse(["--continue_train"], opt.as_dict())).num_workers == workers


@more_workers_than_cores
def test_workers_do_not_change_a_run(tiny_data):
    runs = []
    for workers in (0, 1, 4):
        loader = create_dataset(opt_train(tiny_data, "--num_threads", str(workers)))
        assert loader.num_workers == workers
        runs.append([contents(loader, epoch) for epoch in (1, 2)])
    assert runs[0] == runs[1] == runs[2]
    assert runs[0][0] != runs[0][1]


def test_spawned_workers_give_the_same_batches(tiny_data):
    dataset = UnalignedDataset(opt_train(tiny_data))
    sampler = EpochSampler(dataset, shuffle=True, seed=3)
    spawned = DataLoader(dataset, sampler=sampler, num_workers=1, multiprocessing_context="spawn")
    assert contents(spawned) == contents(DataLoader(dataset, sampler=sampler))


@pytest.mark.parametrize("order", [[], ["--serial_batches"]])
def test_the_seed_decides(tiny_data, order):
    first, again, other = (create_dataset(opt_train(tiny_data, "--seed", seed, *order)) for seed in ("1", "1", "2"))
    assert contents(first) == contents(again) != contents(other)


def test_loading_does_not_change_the_global_rng(tiny_data):
    loader = create_dataset(opt_train(tiny_data))
    before = torch.get_rng_state()
    contents(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_skip_omits_samples_that_were_seen(tiny_data):
    loader = create_dataset(opt_train(tiny_data, "--batch_size", "2"))
    whole = contents(loader, epoch=4)
    assert [len(batch["A_paths"]) for batch in whole] == [2, 2, 1]
    assert contents(loader, epoch=4, skip=2) == whole[1:]
    assert len(loader) == 2
    assert contents(loader, epoch=4, skip=5) == []
    assert contents(loader, epoch=4) == whole


def test_training_shuffles_and_testing_keeps_the_order(tiny_data):
    training, testing = create_dataset(opt_train(tiny_data)), create_dataset(opt_test(tiny_data))
    orders = []
    for epoch in range(1, 9):
        training.sampler.set_epoch(epoch)
        orders.append([index for _, index in training.sampler])
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert list(testing.sampler) == [(0, index) for index in range(5)]


@more_workers_than_cores
def test_no_more_workers_than_batches(tiny_data):
    loader = create_dataset(opt_train(tiny_data, "--num_threads", "4", "--batch_size", "3"))
    assert loader.num_workers == 2


def test_no_workers_on_the_cpu_unless_asked_for(tiny_data):
    assert create_dataset(opt_train(tiny_data)).num_workers == 0


# ---- the datasets


def test_a_batch(tiny_data):
    batch = next(iter(create_dataset(opt_train(tiny_data, "--batch_size", "3"))))
    assert set(batch) == {"A", "B", "A_paths", "B_paths"}
    for domain in "AB":
        assert batch[domain].shape == (3, 3, 24, 24) and batch[domain].dtype == torch.float32
        assert batch[domain].min() >= -1 and batch[domain].max() <= 1
        assert all(Path(path).parent == tiny_data / f"train{domain}" for path in batch[f"{domain}_paths"])


def test_unaligned_partners_are_random_in_training_and_serial_in_testing(tiny_data):
    training, testing = UnalignedDataset(opt_train(tiny_data)), UnalignedDataset(opt_test(tiny_data))
    assert {Path(training[epoch, 0]["B_paths"]).name for epoch in range(40)} == set(names(training.B_paths))
    for index in range(5):
        sample = testing[0, index]
        assert Path(sample["A_paths"]).name == Path(sample["B_paths"]).name


def test_unaligned_is_as_long_as_the_larger_domain(tiny_data, tmp_path):
    for domain, count in (("A", 2), ("B", 5)):
        (tmp_path / f"train{domain}").mkdir()
        for path in list_images(tiny_data / f"train{domain}", count):
            (tmp_path / f"train{domain}" / path.name).write_bytes(path.read_bytes())
    dataset = UnalignedDataset(opt_train(tmp_path, "--serial_batches"))
    assert names(dataset[1, index]["A_paths"] for index in range(len(dataset))) == ["0.png", "1.png"] * 2 + ["0.png"]


def test_direction_swaps_the_folders_and_keeps_the_channels(tiny_data):
    flags = ["--direction", "BtoA", "--input_nc", "1", "--lambda_identity", "0"]
    sample = UnalignedDataset(opt_train(tiny_data, *flags))[1, 0]
    assert Path(sample["A_paths"]).parent.name == "trainB" and Path(sample["B_paths"]).parent.name == "trainA"
    assert sample["A"].shape == (1, 24, 24) and sample["B"].shape == (3, 24, 24)


def test_serial_pairs_get_the_same_crop_and_flip(tiny_data, tmp_path):
    for domain in "AB":
        (tmp_path / f"train{domain}").symlink_to(tiny_data / "trainA")
    dataset = UnalignedDataset(opt_train(tmp_path, "--serial_batches"))
    crops = [dataset[epoch, 0] for epoch in range(5)]
    assert all(torch.equal(crop["A"], crop["B"]) for crop in crops)
    assert not all(torch.equal(crop["A"], crops[0]["A"]) for crop in crops)


@pytest.mark.parametrize("mode", ["unaligned", "single", "template"])
def test_max_dataset_size_cuts_after_sorting(tiny_data, mode):
    loader = create_dataset(opt_train(tiny_data, "--dataset_mode", mode, "--max_dataset_size", "2"))
    assert len(loader) == 2
    assert sorted(name for batch in loader for name in names(batch["A_paths"])) == ["0.png", "1.png"]


def test_single_takes_any_folder(tiny_data, tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    for name in ("x/y/b.PNG", "x/c.jpeg", "a.tif"):
        draw_shapes(name).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    batches = list(create_dataset(opt_test(tmp_path, "--dataset_mode", "single")))
    paths = [str(tmp_path / name) for name in ("a.tif", "x/c.jpeg", "x/y/b.PNG")]
    assert [batch["A_paths"] for batch in batches] == [[path] for path in paths]
    assert set(batches[0]) == {"A", "A_paths"}


@pytest.mark.parametrize(("direction", "folder"), [("AtoB", "testA"), ("BtoA", "testB")])
def test_single_takes_its_domain_from_a_folder_of_two(tiny_data, direction, folder):
    loader = create_dataset(opt_test(tiny_data, "--dataset_mode", "single", "--direction", direction))
    assert [Path(path) for batch in loader for path in batch["A_paths"]] == list_images(tiny_data / folder)


def test_template_makes_pairs_of_coarse_and_sharp(tiny_data):
    def sample(*flags):
        return create_dataset(opt_train(tiny_data, "--dataset_mode", "template", *flags)).dataset[1, 0]

    with pytest.raises(DataError, match="--direction BtoA: --dataset_mode template goes from coarse to sharp only"):
        sample("--direction", "BtoA")
    same = sample("--coarse", "1")
    assert torch.equal(same["A"], same["B"])
    coarse = sample("--coarse", "4", "--preprocess", "none", "--no_flip")
    assert torch.equal(coarse["A"][:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2), coarse["A"])
    assert not torch.equal(coarse["A"], coarse["B"])


# ---- errors before the first step, and from workers


@pytest.mark.parametrize(("workers", "suffix", "missing"), [("0", "png", 9), ("1", "png", 300), ("0", "jpg", 9)])
def test_a_truncated_image_is_named(tmp_path, workers, suffix, missing):
    draw_shapes("a", (200, 200)).save(tmp_path / f"whole.{suffix}")
    (tmp_path / f"cut.{suffix}").write_bytes((tmp_path / f"whole.{suffix}").read_bytes()[:-missing])
    loader = create_dataset(opt_test(tmp_path, "--dataset_mode", "single", "--num_threads", workers))
    cut = re.escape(str(tmp_path / f"cut.{suffix}"))
    whole_message = rf"^Cannot read the image {cut} \(.*\): replace or remove this file\.$"
    with pytest.raises(DataError, match=whole_message, check=lambda error: error.flags() == ["--skip_bad_images"]):
        list(loader)  # no "as" above: it would keep the workers alive for seconds


@pytest.mark.parametrize(("preprocess", "size"), [("crop", (30, 20)), ("none", (1, 30))])
def test_an_image_that_is_too_small_is_named_before_the_first_step(tiny_data, tmp_path, preprocess, size):
    (tmp_path / "trainB").symlink_to(tiny_data / "trainB")
    (tmp_path / "trainA").mkdir()
    Image.new("RGB", size).save(tmp_path / "trainA" / "small.png")
    with pytest.raises(DataError, match=rf"small\.png is {size[0]}x{size[1]} pixels, .*preprocess={preprocess}"):
        create_dataset(opt_train(tmp_path, "--preprocess", preprocess))


def test_images_of_several_sizes_do_not_fit_in_a_batch(tmp_path):
    for name, size in (("a.png", (40, 36)), ("b.png", (44, 36))):
        draw_shapes(name, size).save(tmp_path / name)
    flags = ["--dataset_mode", "single", "--preprocess", "none"]
    with pytest.raises(DataError, match=r"--batch_size 2 .*a\.png has 40x36 and .*b\.png 44x36"):
        create_dataset(opt_test(tmp_path, *flags, "--batch_size", "2"))
    assert len(create_dataset(opt_test(tmp_path, *flags))) == 2


def test_a_child_process_ends_though_its_loader_has_workers(tiny_data):
    """Its workers ignore SIGTERM, by which multiprocessing would end them."""
    child = multiprocessing.get_context("spawn").Process(target=keep_a_loader, args=(str(tiny_data),))
    child.start()
    child.join(PATIENCE)
    ended = child.exitcode
    child.kill()
    assert ended == 0


def keep_a_loader(dataroot):
    batches = iter(create_dataset(TrainOptions().parse(["--dataroot", dataroot, "--num_threads", "1"])))
    keep_a_loader.batches = batches  # until the process ends
    next(batches)

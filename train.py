"""Train a model: python train.py --dataroot ./datasets/maps --name maps --model cycle_gan_attn."""

import shlex
import sys
import time
from functools import partial
from pathlib import Path

import torch

from data import EpochLoader, create_dataset
from models import create_model
from models.base_model import BaseModel
from options.base_options import Options, read_saved
from options.train_options import TrainOptions
from util import distributed
from util.checkpoint import load_checkpoint, save_checkpoint
from util.command import run_command
from util.device import pick_device
from util.display import Display, Progress, create_display, crossed
from util.init_from import init_from
from util.interrupt import stop_requests


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train. Returns the exit status: 0, or 128 + the number of the signal that ended the run early."""
    flags = TrainOptions().peek(argv)
    run_dir = Path(flags["checkpoints_dir"]) / flags["name"]
    opt = TrainOptions().parse(argv, read_saved(run_dir) if flags["continue_train"] else {})
    torch.manual_seed(opt.seed)
    loader = create_dataset(opt)
    device = pick_device(opt.device, opt.gpu_ids)
    model = create_model(opt).to(device)
    model.prepare_training(opt)
    model.check_sizes({size for sizes in loader.dataset.sizes.values() for size in sizes})
    if rank := distributed.rank():
        torch.manual_seed(opt.seed + rank)  # weights are made, and the same in all processes; noise should not be
    distributed.setup(device)
    start = resume(opt, model, run_dir)
    distributed.broadcast(model)
    if start["epoch_images"] >= len(loader.dataset):
        raise ValueError(
            f"the run has seen {start['epoch_images']} pictures of an epoch, but now there are {len(loader.dataset)}: "
            "continue with those it was started with, or start a new run"
        )
    if len(loader.dataset) < (most := distributed.largest(len(loader.dataset))):
        raise ValueError(
            f"--dataroot {opt.dataroot}: {len(loader.dataset)} pictures here, but {most} on another machine"
        )
    if distributed.is_main():
        run_dir.mkdir(parents=True, exist_ok=True)
        opt.save(run_dir)
    print(model.summary(verbose=opt.verbose))
    if distributed.count() > 1:
        print(f"{distributed.count()} processes, {loader.sampler.step_size(0)} pictures a step")
    status = train(opt, model, loader, run_dir, **start)
    distributed.shutdown()
    return status


def train(
    opt: Options,
    model: BaseModel,
    loader: EpochLoader,
    run_dir: Path,
    *,
    epoch: int,
    epoch_images: int,
    total_images: int,
) -> int:
    """Train from the given position: epochs count from 1, images from 0. Returns the exit status."""

    def save(label: str) -> None:
        position = {"epoch": epoch, "epoch_images": epoch_images, "total_images": total_images}
        state = {"model": model.training_state(), "random": random_state()}
        processes = distributed.gather({"pools": state["model"]["pools"], "random": state["random"]})
        if distributed.is_main():
            save_checkpoint(model, run_dir, label, position | state | {"other_processes": processes[1:]})

    test = f"python test.py --name {shlex.quote(opt.name)}"
    if opt.given("checkpoints_dir"):
        test += f" --checkpoints_dir {shlex.quote(opt.checkpoints_dir)}"
    epochs, epoch_size, started = opt.n_epochs + opt.n_epochs_decay, len(loader.dataset), time.monotonic()
    display = create_display(opt, run_dir) if distributed.is_main() else Display([])
    with stop_requests() as signals:
        for running in range(epoch, epochs + 1):
            loader.sampler.set_epoch(running, skip=epoch_images)
            waiting_since = time.perf_counter()
            for batch in loader:
                stepping_since = time.perf_counter()
                size, model.share = loader.sampler.step_size(epoch_images), loader.sampler.share(epoch_images)
                losses, images = model.step(batch)
                now = time.perf_counter()
                epoch_images, total_images = epoch_images + size, total_images + size
                progress = Progress(
                    epoch=epoch, epochs=epochs, epoch_images=epoch_images, epoch_size=epoch_size,
                    total_images=total_images, batch_size=size, step_seconds=(now - stepping_since) / size,
                    data_seconds=(stepping_since - waiting_since) / size,
                )  # fmt: skip
                pictures = partial(model.preview, images)
                if crossed(opt.print_freq, total_images - size, total_images):
                    losses = distributed.average(losses, model.share)
                display.update(progress, losses, pictures)
                if ended := epoch_images == epoch_size:
                    model.end_epoch()
                    display.end_epoch(progress, pictures)
                    epoch, epoch_images = epoch + 1, 0
                    if running % opt.save_epoch_freq == 0:
                        save(str(running))
                due = crossed(opt.save_latest_freq, total_images - size, total_images)
                if due and opt.save_by_iter:
                    save(f"iter_{total_images}")
                over = opt.max_minutes and time.monotonic() - started > 60 * opt.max_minutes
                stop = distributed.largest(bool(signals or over))
                if due or ended or stop:
                    save("latest")
                if stop and epoch <= epochs:
                    display.close()
                    print(f"stopped in epoch {epoch}, state saved; to go on, add --continue_train to the command")
                    return 128 + signals[0] if signals else 0
                waiting_since = time.perf_counter()
    display.close()
    print(f"all {epochs} epochs are done; weights are in {run_dir}. Next: {test}")
    return 0


def resume(opt: Options, model: BaseModel, run_dir: Path) -> dict[str, int]:
    """Where to start; with --continue_train, `model` and the random generators take over what the run has saved."""
    start = {"epoch": opt.epoch_count, "epoch_images": 0, "total_images": 0}
    if not opt.continue_train:
        if any(run_dir.glob("*_net_*.pth")):
            print(f"{run_dir} holds a run already, which this one overwrites; --continue_train would go on with it")
        if opt.init_from:
            start_from(opt, model, run_dir)
        return start
    label = checkpoint_label(opt)
    state = load_checkpoint(model, run_dir, label)
    if state is None:
        print(f"only weights go on: optimizers and schedules start anew, in epoch {opt.epoch_count}")
        return start
    try:
        start = {name: state[name] for name in start}
        saved = [{"pools": state["model"]["pools"], "random": state["random"]}, *state.get("other_processes", [])]
        new = {"pools": {name: [] for name in model.pools}, "random": random_state()}  # of a process that joins
        own = [*saved, new][min(distributed.rank(), len(saved))]
        model.load_training_state(state["model"] | {"pools": own["pools"]}, epoch=start["epoch"])
        torch.set_rng_state(own["random"]["cpu"])
        if "cuda" in own["random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(own["random"]["cuda"][: torch.cuda.device_count()])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{label}_state.pth in {run_dir} does not belong to this model: {error}") from error
    if opt.given("epoch_count") and opt.epoch_count != start["epoch"]:
        raise ValueError(
            f"--epoch_count {opt.epoch_count}: the saved state goes on in epoch {start['epoch']}; leave it out"
        )
    print(f"continuing {opt.name} in epoch {start['epoch']} after {start['total_images']} images")
    if len(saved) != distributed.count():
        print(f"saved by {len(saved)} processes, continued by {distributed.count()}: not exactly the same run any more")
    return start


def start_from(opt: Options, model: BaseModel, run_dir: Path) -> None:
    """Load what fits of the weights that --init_from names, and list the rest."""
    source = Path(opt.init_from)
    if not source.exists():
        source = Path(opt.checkpoints_dir) / opt.init_from
    if not source.exists():
        raise ValueError(f"--init_from {opt.init_from}: no such file or folder, nor a run in {opt.checkpoints_dir}")
    if source.resolve() == run_dir.resolve():
        raise ValueError(f"--init_from {source}: the new run would overwrite it; choose another --name")
    trained = read_saved(source).get("direction", opt.direction)
    print(init_from(model, source, checkpoint_label(opt), reverse=trained != opt.direction))


def checkpoint_label(opt: Options) -> str:
    """How the names of the files begin that --epoch or --load_iter ask for."""
    return f"iter_{opt.load_iter}" if opt.load_iter else opt.epoch


def random_state() -> dict:
    """The states of torch's random generators."""
    state: dict = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


if __name__ == "__main__":
    sys.exit(run_command(main))

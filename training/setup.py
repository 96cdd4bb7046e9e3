"""Build a model that is ready for training: for train.py, its dry run and the benchmarks."""

import torch

from models import create_model
from models.base_model import BaseModel
from options.base_options import Options
from training.optimization import Optimization, create_optimization
from util.device import Tuning, create_tuning


def create_training(opt: Options, device: torch.device, *, sizes: int) -> tuple[BaseModel, Optimization, Tuning]:
    """Build the model and its optimization on a device, with PyTorch's switches as `util.device.tuning` chooses them.

    Args:
        sizes: number of sizes of the images.

    Raises:
        ValueError: flags do not suit each other or the device.
    """
    optimization = create_optimization(opt, device)
    tuning = create_tuning(opt, device, precision=optimization.precision, sizes=sizes)
    tuning.apply()
    model = create_model(opt).to(device)
    model.prepare_training(opt, optimization)
    model.to(memory_format=tuning.memory_format)
    return model, optimization, tuning

"""Models by name: `--model X` is the class in models/X_model.py."""

from typing import TYPE_CHECKING, Any

from util.registry import find_class

if TYPE_CHECKING:
    from models.base_model import BaseModel


def create_model(opt: Any) -> "BaseModel":
    """Create the model --model for inference, on the CPU, with random weights.

    Raises:
        ValueError: a flag does not suit the model.
    """
    return find_class("models", opt.model)(opt)

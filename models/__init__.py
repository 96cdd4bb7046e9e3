"""Models by name: `--model X` is the class in models/X_model.py. `Translator` is a trained one, ready for use."""

from typing import TYPE_CHECKING, Any

from models.base_model import BaseModel
from util.registry import find_class

if TYPE_CHECKING:
    from models.translator import Translator

__all__ = ["BaseModel", "Translator", "create_model"]


def create_model(opt: Any) -> BaseModel:
    """Build the model that --model names, ready for inference, on the CPU, with fresh weights."""
    return find_class("models", opt.model)(opt)


def __getattr__(name: str) -> Any:
    # later than the rest: the translator needs the options, and these need the networks in this package
    if name == "Translator":
        from models.translator import Translator

        return Translator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

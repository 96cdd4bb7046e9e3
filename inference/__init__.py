"""Inference with trained models. `Translator` is the public class."""

from inference.translator import Translator

__all__ = ["Translator"]

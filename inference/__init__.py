"""Trained models at work: `Translator` turns images into images."""

from inference.translator import Translator

__all__ = ["Translator"]

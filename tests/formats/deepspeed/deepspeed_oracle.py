"""Whole tensors of a catalog, through its own layout and the engine."""

from whole_tensors import arrange, wholes

__all__ = ["arrange", "wholes"]

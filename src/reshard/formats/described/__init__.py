"""Checkpoints that a layout describes: which file is whose, and what lies where in it.

One reader and one writer walk the same description; there is no code of any one format here.
"""

NAME = "described"

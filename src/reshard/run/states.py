"""The kinds of state that a tensor can be of, by the names that the field uses.

An optimizer may have others, under names of its own; these are the ones that code speaks of.
"""

from __future__ import annotations

from typing import Final

PARAM: Final = "param"
"""A weight in the element type of the computation, a buffer, or a frozen parameter."""
MASTER: Final = "master"
"""The weight in the precision of the optimizer."""
EXP_AVG: Final = "exp_avg"
EXP_AVG_SQ: Final = "exp_avg_sq"
STEP: Final = "step"
"""One number for each parameter: the steps that the optimizer has done with it."""
EXTRA: Final = "extra"
"""A tensor that belongs to no parameter."""

WEIGHTS: Final = (PARAM, MASTER)
"""Kinds that can be a model's weights, the best for a model folder first."""
MOMENTS: Final = (EXP_AVG, EXP_AVG_SQ)
"""What Adam keeps, one number for each element."""
REMAINDER: Final = "remainder"
"""The lower halves of master weights, as numbers from -32768 to 32767; only of an array."""

"""Which model a checkpoint is of, and what it may be called after."""

from __future__ import annotations

"""DeepSpeed's own universal form: whole tensors, a folder for each parameter."""

from __future__ import annotations

"""What needs torch: nothing else in reshard imports it."""

from __future__ import annotations

"""The universal format: every tensor whole, named, typed, and hashed (docs/universal-format.md)."""

from __future__ import annotations

NAME = "universal"
MANIFEST = "manifest.json"
LAYOUT = "layout.ucl"
FRAMEWORK = "extra/framework.json"

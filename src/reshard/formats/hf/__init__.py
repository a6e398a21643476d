"""Hugging Face model folders: safetensors or torch files of whole tensors, and `config.json`."""

from __future__ import annotations

NAME = "hf"
CONFIG = "config.json"

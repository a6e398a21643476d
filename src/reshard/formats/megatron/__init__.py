"""Megatron-LM and Megatron-core: the legacy `torch` format and `torch_dist`."""

NAME = "megatron"

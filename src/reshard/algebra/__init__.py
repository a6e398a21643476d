"""Index algebra: boxes, affine pieces, terms, splits, and partitions. Pure integers, no I/O."""

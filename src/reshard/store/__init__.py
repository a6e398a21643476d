"""Where bytes are: the folders that are read, and those that appear whole when they are written."""

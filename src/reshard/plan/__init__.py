"""What is stored, what is wanted, and the copies between them. Plain data: no bytes are read."""

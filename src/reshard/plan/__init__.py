"""What is stored, what is wanted, and the copies between them. Plain data: no tensor, no bytes read."""

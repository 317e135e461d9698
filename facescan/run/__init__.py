"""A run folder: its fingerprint, its durable replies, and the predictions made of them."""

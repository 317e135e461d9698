"""A run folder: what was asked, the durable replies, and the predictions made of them."""

"""What you run: one module per command; they read flags, call the layers below, print results."""

"""Where face photographs come from; replaced below."""

"""Where answers come from: the Engine contract, the engines, and the online service."""

"""How artifacts are written, and checked when they are read."""

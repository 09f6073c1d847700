"""What runs a stage, and cannot change a byte of its result: no dependency of any."""

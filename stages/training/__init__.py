"""How the student learns: the one training loop, and what it is made of."""

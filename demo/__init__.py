"""The demo world: its photographs, and the teacher that sees them."""

import stages  # noqa: F401  # how threads wait is decided before torch is imported

"""The published tables and figures, over the pipeline's own stages."""

import stages  # noqa: F401  # how threads wait is decided before torch is imported

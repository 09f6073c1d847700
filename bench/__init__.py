"""How close the pipeline comes to the bare model, as ratios measured side by side."""

import stages  # noqa: F401  # how threads wait is decided before torch is imported

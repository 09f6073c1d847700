"""How close the pipeline comes to the bare model, as ratios measured side by side."""

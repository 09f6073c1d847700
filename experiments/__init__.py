"""The published tables and figures, over the pipeline's own stages."""

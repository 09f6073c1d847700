"""Ready parameters: recipes, data sets, and what puts them together."""

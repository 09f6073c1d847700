"""The report's page: its sections, charts and sample cards."""

"""Statistics, tables, plots and HTML pages of results."""

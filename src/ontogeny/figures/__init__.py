"""The figures: one module and one `draw` each, from tidy tables to PDF, PNG and CSV."""

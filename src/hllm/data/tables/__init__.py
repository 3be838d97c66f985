"""Canonical tables: column names and types, values, filters, identifiers to numbers."""

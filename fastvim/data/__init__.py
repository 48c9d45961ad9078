"""Data sets and transforms; every loader states its licence and layout."""

"""One operator, several backends."""

"""What `alameda` does at a terminal, as a client of the public API. It knows no room behind it."""

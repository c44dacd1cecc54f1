"""A client of the Paseo daemon; knows nothing of this service."""

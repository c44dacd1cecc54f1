"""The web page, the public API's first client."""

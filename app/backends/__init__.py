"""The registry of coding-agent backends, one adapter a file; knows nothing of the store or of HTTP."""

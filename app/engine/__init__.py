"""The use-cases: what happens between a request and an agent. Knows no HTTP."""

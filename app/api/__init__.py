"""HTTP: one router a noun, schemas, problems, event streams, authentication."""

"""PostgreSQL and the only SQL: rows become domain values before a transaction closes."""

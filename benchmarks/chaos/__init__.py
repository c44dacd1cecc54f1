"""`python -m benchmarks.chaos`: replicas, a daemon and a database, killed under clients; and a checker.

Two replicas share one PostgreSQL and one Paseo daemon (its twin, in a process of its own). Clients prompt and
follow through whichever replica answers. Meanwhile processes are killed and paused, connections cut. Then
everything is healed, and the checker holds the promises of the service against all that was written and seen.
"""

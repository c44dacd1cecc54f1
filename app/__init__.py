"""Alameda: coding agents behind plain HTTP."""

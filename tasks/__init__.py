"""Thin Prefect tasks: retries, caching, logging, artifacts."""

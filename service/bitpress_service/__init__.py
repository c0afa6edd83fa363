"""Bitpress service: the state of all jobs, and the REST API over it."""

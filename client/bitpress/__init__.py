"""Bitpress client: the contract of the service, and what speaks it."""

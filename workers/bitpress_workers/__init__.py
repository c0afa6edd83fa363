"""Bitpress workers: the compression itself, on one device or many."""

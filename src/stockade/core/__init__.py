"""Frozen values, errors and places. Imports nothing of ours; the hot path of `stockade run` loads all of it."""

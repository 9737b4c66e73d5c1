"""RADICAL-Pilot resource files, ``resource_<site>.json``: part of the package when installed."""

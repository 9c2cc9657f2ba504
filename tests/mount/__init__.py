"""Acceptance tests: real servers, a real mount, ordinary tools."""

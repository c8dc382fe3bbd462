"""Analyse: what the experts of a model serve, and whether its routers tell senses of a word apart."""

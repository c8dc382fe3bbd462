"""Downstream: what a model is asked beyond perplexity on a text; each part measures one model at a time."""

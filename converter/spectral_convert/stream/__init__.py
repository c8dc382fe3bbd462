"""Streaming: runs a model of any size with one decoder layer in memory at a time, all batches in one pass of the disk."""

from spectral_convert.stream.model import open_streamed, stream_of

__all__ = ["open_streamed", "stream_of"]

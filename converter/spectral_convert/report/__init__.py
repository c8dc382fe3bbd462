"""Report: one self-contained page about a bundle, with its room in three dimensions."""

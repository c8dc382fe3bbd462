"""`python -m spectral_convert`: the same as the command `spectral`."""

from spectral_convert.cli import main

main()

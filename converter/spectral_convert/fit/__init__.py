"""The closed-form fit of one layer: projection, spheres, colour, residual norms."""

from spectral_convert.fit.layer import LayerFit, fit_layer

__all__ = ["LayerFit", "fit_layer"]

"""The fit of one layer: projection, spheres, colour, residual norms in closed form, and their refinement."""

from spectral_convert.fit.layer import LayerFit, fit_layer
from spectral_convert.fit.refine import Aim, refine_fit

__all__ = ["Aim", "LayerFit", "fit_layer", "refine_fit"]

"""Tree: the BVH over one layer's expert spheres, built by the native core."""

from __future__ import annotations

import numpy as np

from spectral_runtime.attaching.discovery import RouterSite
from spectral_runtime.bvh import build_bvh
from spectral_runtime.geometry import Bvh, Geometry, widened


def choice_bias_of(site: RouterSite) -> np.ndarray | None:
    """The gate's choice bias as float32 [E], or None."""
    return None if site.choice_bias is None else site.choice_bias.detach().float().cpu().numpy().reshape(-1)


def build_tree(site: RouterSite, geometry: Geometry) -> Bvh:
    """The BVH of a layer's widened spheres; bounds include the gate's choice bias."""
    return build_bvh(widened(geometry), choice_bias=choice_bias_of(site))

"""Router families: what scoring rule a router follows, found by watching it rather than by its name."""

from spectral_convert.families.classify import classify_router, classify_routers

__all__ = ["classify_router", "classify_routers"]

// The Python module spectral_runtime._native: calls one bind function per subject, nothing else.
#include <pybind11/pybind11.h>

#include "bindings.h"

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native core of spectral_runtime: BVH builder and routers.";
    m.attr("__version__") = SPECTRAL_VERSION;
    spectral::bindings::bind_errors(m);
    spectral::bindings::bind_bvh(m);
    spectral::bindings::bind_router(m);
    spectral::bindings::bind_cuda(m);
    spectral::bindings::bind_optix(m);
}

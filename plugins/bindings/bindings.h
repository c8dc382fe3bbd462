// One declaration per bind_<subject>.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace spectral::bindings {

void bind_errors(pybind11::module_ &m);
void bind_bvh(pybind11::module_ &m);
void bind_router(pybind11::module_ &m);
void bind_cuda(pybind11::module_ &m);
void bind_optix(pybind11::module_ &m);

} // namespace spectral::bindings

// Binds the BVH builder.
#include <pybind11/pybind11.h>

#include "bindings.h"

namespace spectral::bindings {

void bind_bvh(pybind11::module_ &) {}

} // namespace spectral::bindings

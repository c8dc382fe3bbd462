// BVH builder.
#include "spectral/builder.h"

#include "spectral/error.h"

namespace spectral {

Bvh build_bvh(const Geometry &, const BuildConfig &, Executor &) {
    throw InternalError("build_bvh: not written yet");
}

} // namespace spectral

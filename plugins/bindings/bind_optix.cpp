// Binds the OptiX router: device addresses as integers, host arrays for the construction.
#include <tuple>
#include <utility>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "device_router.h"
#include "optix_router.h"

namespace spectral::bindings {
namespace {

using cuda::Address;
using optix::OptixRouter;

bool run_candidates(const OptixRouter &router, Address x, std::int64_t stride, int tokens,
                    int x_dtype, int count, Address ids, bool wide, Address scores, Address weights,
                    Address work, Address stream, int spread) {
    optix::SearchCall call{x, stride, tokens, x_dtype};
    call.ids = reinterpret_cast<void *>(ids);
    call.scores = reinterpret_cast<float *>(scores);
    call.weights = reinterpret_cast<float *>(weights);
    call.work = reinterpret_cast<std::int32_t *>(work);
    call.count = count;
    call.wide_ids = wide;
    call.spread = spread;
    call.stream = reinterpret_cast<cuda::Stream>(stream);
    return router.candidates(call);
}

using HostAnswer =
    std::tuple<py::array_t<std::int32_t>, py::array_t<float>, py::array_t<std::int32_t>>;

HostAnswer route_host(OptixRouter &router, const py::array &hidden, std::size_t count) {
    const std::size_t width = router.cuda_router().hidden();
    const float *data = data_of<float>("hidden", hidden, {any, static_cast<py::ssize_t>(width)});
    const py::ssize_t tokens = hidden.shape(0);
    const auto columns = static_cast<py::ssize_t>(count);
    py::array_t<std::int32_t> ids({tokens, columns});
    py::array_t<float> scores({tokens, columns});
    py::array_t<std::int32_t> work({tokens, py::ssize_t{2}});
    const optix::HostCandidates out{{count, ids.mutable_data(), scores.mutable_data()},
                                    work.mutable_data()};
    {
        const py::gil_scoped_release release;
        router.candidates_on_host(data, static_cast<std::size_t>(tokens), out);
    }
    return {std::move(ids), std::move(scores), std::move(work)};
}

py::dict facts_of(const OptixRouter &router) {
    const optix::SearchFacts facts = router.search().facts();
    py::dict out;
    out["abi"] = facts.abi;
    out["rtcore_version"] = facts.rtcore_version;
    out["structures"] = facts.shells;
    out["structure_bytes"] = facts.structure_bytes;
    out["uncompacted_bytes"] = facts.uncompacted_bytes;
    return out;
}

} // namespace

void bind_optix(py::module_ &m) {
    m.def("optix_absent", &optix::rays_absent,
          "Why OptiX cannot be used here, or an empty string; opens the driver.");
    device_router_class<OptixRouter>(m, "OptixRouter",
                                     "The geometric router of one layer on OptiX.")
        .def("candidates", &run_candidates, py::arg("x"), py::arg("stride"), py::arg("tokens"),
             py::arg("x_dtype"), py::arg("count"), py::arg("ids"), py::arg("wide"),
             py::arg("scores"), py::arg("weights"), py::arg("work"), py::arg("stream"),
             py::arg("spread") = 0)
        .def("route", &route_host, py::arg("hidden"), py::arg("count"))
        .def(
            "scores",
            [](OptixRouter &router, const py::array &hidden) {
                return scores_of_host(router.cuda_router(), hidden);
            },
            py::arg("hidden"))
        .def_property_readonly("facts", &facts_of);
}

} // namespace spectral::bindings

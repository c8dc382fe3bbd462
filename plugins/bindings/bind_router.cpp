// Binds the CPU router: arrays of a Geometry and a Bvh in, ids and scores out; the GIL is released.
#include <optional>
#include <string>
#include <utility>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "arrays.h"
#include "bindings.h"
#include "cpu_router.h"
#include "dispatch.h"
#include "router_arrays.h"

namespace spectral::bindings {
namespace {

using cpu::CpuRouter;
Choice choice_named(const std::string &name) {
    if (name == "identity") {
        return Choice::identity;
    }
    if (name == "sigmoid") {
        return Choice::sigmoid;
    }
    if (name == "sqrtsoftplus") {
        return Choice::sqrtsoftplus;
    }
    throw UserError("choice", "identity, sigmoid or sqrtsoftplus", name);
}

std::unique_ptr<CpuRouter> make_router(const py::array &mean, const py::array &projection,
                                       const py::array &centres, const py::array &colour,
                                       const py::array &beta, const OptionalArray &common,
                                       const OptionalArray &choice_bias, const OptionalArray &first,
                                       const OptionalArray &count, const OptionalArray &experts,
                                       const std::string &choice, std::size_t threads,
                                       const std::string &simd) {
    const RouterArrays arrays{mean,   projection,  centres, colour, beta,
                              common, choice_bias, first,   count,  experts};
    const Geometry geometry = arrays.geometry();
    const std::optional<Topology> topology = arrays.topology();
    const cpu::RouterConfig config{choice_named(choice), threads, simd};
    const py::gil_scoped_release release;
    return std::make_unique<CpuRouter>(geometry, topology ? &*topology : nullptr, config);
}

py::array_t<float> scores(CpuRouter &router, const py::array &hidden) {
    const float *data =
        data_of<float>("hidden", hidden, {any, static_cast<py::ssize_t>(router.hidden())});
    py::array_t<float> out({hidden.shape(0), static_cast<py::ssize_t>(router.experts())});
    float *target = out.mutable_data();
    const py::gil_scoped_release release;
    router.scores(data, static_cast<std::size_t>(hidden.shape(0)), target);
    return out;
}

using Answer = std::tuple<py::array_t<std::int32_t>, py::array_t<float>, RouteStatistics>;
using RouteMethod = RouteStatistics (CpuRouter::*)(const float *, std::size_t, Method, Candidates);

Answer answer(CpuRouter &router, const float *data, py::ssize_t tokens, std::size_t count,
              const std::string &method, RouteMethod route) {
    // Refused before the arrays are made: a wild count must not ask for wild memory.
    const py::ssize_t width = count <= router.experts() ? static_cast<py::ssize_t>(count) : 0;
    py::array_t<std::int32_t> ids({tokens, width});
    py::array_t<float> scores({tokens, width});
    const Candidates out{count, ids.mutable_data(), scores.mutable_data()};
    const Method how = method_named(method);
    RouteStatistics statistics;
    {
        const py::gil_scoped_release release;
        statistics = (router.*route)(data, static_cast<std::size_t>(tokens), how, out);
    }
    return {std::move(ids), std::move(scores), statistics};
}

Answer route(CpuRouter &router, const py::array &hidden, std::size_t count,
             const std::string &method) {
    const float *data =
        data_of<float>("hidden", hidden, {any, static_cast<py::ssize_t>(router.hidden())});
    return answer(router, data, hidden.shape(0), count, method, &CpuRouter::route);
}

Answer route_points(CpuRouter &router, const py::array &points, std::size_t count,
                    const std::string &method) {
    const float *data =
        data_of<float>("points", points, {any, static_cast<py::ssize_t>(router.rank())});
    return answer(router, data, points.shape(0), count, method, &CpuRouter::route_points);
}

} // namespace

void bind_router(py::module_ &m) {
    m.def("available_simd", &cpu::available_simd,
          "Instruction sets this processor can run, best first.");
    py::class_<RouteStatistics>(m, "RouteStatistics", "Work done by one call.")
        .def_readonly("nodes", &RouteStatistics::nodes)
        .def_readonly("leaves", &RouteStatistics::leaves)
        .def_readonly("searched", &RouteStatistics::searched)
        .def_readonly("scanned", &RouteStatistics::scanned);
    py::class_<CpuRouter>(m, "CpuRouter", "Scan or best-first search on the CPU.")
        .def(py::init(&make_router), py::arg("mean"), py::arg("projection"), py::arg("centres"),
             py::arg("colour"), py::arg("beta"), py::kw_only(), py::arg("common") = py::none(),
             py::arg("choice_bias") = py::none(), py::arg("first") = py::none(),
             py::arg("count") = py::none(), py::arg("experts") = py::none(),
             py::arg("choice") = "identity", py::arg("threads") = 0, py::arg("simd") = "auto")
        .def("scores", &scores, py::arg("hidden"))
        .def("route", &route, py::arg("hidden"), py::arg("count"), py::kw_only(),
             py::arg("method") = "auto")
        .def("route_points", &route_points, py::arg("points"), py::arg("count"), py::kw_only(),
             py::arg("method") = "auto")
        .def_property_readonly("simd", &CpuRouter::simd)
        .def_property_readonly("has_tree", &CpuRouter::has_tree);
}

} // namespace spectral::bindings

// What the bindings of the GPU back-ends' routers share: how one is made, and its scores of host
// arrays.
#pragma once

#include <memory>

#include "cuda_router.h"
#include "gate_rule.h"
#include "router_arrays.h"

namespace spectral::bindings {

template <class Router>
std::unique_ptr<Router>
make_device_router(int device, const py::dict &rule, const py::array &mean,
                   const py::array &projection, const py::array &centres, const py::array &colour,
                   const py::array &beta, const OptionalArray &common,
                   const OptionalArray &choice_bias, const OptionalArray &first,
                   const OptionalArray &count, const OptionalArray &experts) {
    const RouterArrays arrays{mean,   projection,  centres, colour, beta,
                              common, choice_bias, first,   count,  experts};
    const Geometry geometry = arrays.geometry();
    const std::optional<Topology> topology = arrays.topology();
    const cuda::Rule numbers = rule_of(rule);
    const py::gil_scoped_release release;
    return std::make_unique<Router>(device, geometry, topology ? &*topology : nullptr, numbers);
}

/// The class with its constructor; the binding adds its methods.
template <class Router>
py::class_<Router> device_router_class(py::module_ &m, const char *name, const char *doc) {
    return py::class_<Router>(m, name, doc)
        .def(py::init(&make_device_router<Router>), py::arg("device"), py::arg("rule"),
             py::arg("mean"), py::arg("projection"), py::arg("centres"), py::arg("colour"),
             py::arg("beta"), py::kw_only(), py::arg("common") = py::none(),
             py::arg("choice_bias") = py::none(), py::arg("first") = py::none(),
             py::arg("count") = py::none(), py::arg("experts") = py::none());
}

/// Scores float32 [T, E] of hidden states [T, D] in host memory.
inline py::array_t<float> scores_of_host(cuda::CudaRouter &router, const py::array &hidden) {
    const float *data =
        data_of<float>("hidden", hidden, {any, static_cast<py::ssize_t>(router.hidden())});
    py::array_t<float> out({hidden.shape(0), static_cast<py::ssize_t>(router.experts())});
    float *target = out.mutable_data();
    const py::gil_scoped_release release;
    router.scores_on_host(data, static_cast<std::size_t>(hidden.shape(0)), target);
    return out;
}

} // namespace spectral::bindings

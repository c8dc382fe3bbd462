// Binds the BVH builder: geometry arrays in, the arrays of spectral_runtime.geometry.Bvh out.
#include <optional>
#include <string>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "arrays.h"
#include "bindings.h"
#include "spectral/builder.h"
#include "thread_pool.h"

namespace spectral::bindings {
namespace {

struct BuildArguments {
    Geometry geometry;
    BuildConfig config;
};

BuildArguments read_arguments(const py::array &centres, const py::array &colour,
                              const py::array &beta, const std::optional<py::array> &choice_bias,
                              const std::optional<py::array> &query_scale, std::size_t leaf_size) {
    BuildArguments a;
    a.geometry.centres = data_of<float>("centres", centres, {any, any, 3});
    const py::ssize_t experts = centres.shape(1);
    a.geometry.levels = static_cast<std::size_t>(centres.shape(0));
    a.geometry.experts = static_cast<std::size_t>(experts);
    a.geometry.colour = data_of<float>("colour", colour, {experts, any});
    a.geometry.colours = static_cast<std::size_t>(colour.shape(1));
    a.geometry.beta = data_of<float>("beta", beta, {experts});
    a.geometry.choice_bias = optional_data<float>("choice_bias", choice_bias, {experts});
    const auto rank = static_cast<py::ssize_t>(a.geometry.rank());
    a.config = {leaf_size, optional_data<float>("query_scale", query_scale, {rank})};
    return a;
}

py::dict to_dict(Bvh &&bvh, const Geometry &geometry) {
    const auto nodes = static_cast<py::ssize_t>(bvh.first.size());
    py::dict out;
    out["lower"] =
        to_numpy(std::move(bvh.lower), {nodes, static_cast<py::ssize_t>(geometry.rank())});
    out["upper"] =
        to_numpy(std::move(bvh.upper), {nodes, static_cast<py::ssize_t>(geometry.rank())});
    out["power"] =
        to_numpy(std::move(bvh.power), {nodes, static_cast<py::ssize_t>(geometry.levels)});
    out["beta"] = to_numpy(std::move(bvh.beta), {nodes});
    out["choice_bias"] = to_numpy(std::move(bvh.choice_bias), {nodes});
    out["first"] = to_numpy(std::move(bvh.first), {nodes});
    out["count"] = to_numpy(std::move(bvh.count), {nodes});
    out["experts"] = to_numpy(std::move(bvh.experts), {static_cast<py::ssize_t>(geometry.experts)});
    return out;
}

py::dict build(const py::array &centres, const py::array &colour, const py::array &beta,
               const std::optional<py::array> &choice_bias,
               const std::optional<py::array> &query_scale, std::size_t leaf_size,
               std::size_t threads) {
    const BuildArguments a =
        read_arguments(centres, colour, beta, choice_bias, query_scale, leaf_size);
    Bvh bvh;
    {
        const py::gil_scoped_release release;
        bvh = build_bvh(a.geometry, a.config, *cpu::shared_pool(threads));
    }
    return to_dict(std::move(bvh), a.geometry);
}

} // namespace

void bind_bvh(py::module_ &m) {
    m.def("build_bvh", &build, py::arg("centres"), py::arg("colour"), py::arg("beta"),
          py::kw_only(), py::arg("choice_bias") = py::none(), py::arg("query_scale") = py::none(),
          py::arg("leaf_size") = 16, py::arg("threads") = 0,
          "Arrays of a Bvh over spheres: centres [L, E, 3], colour [E, S], beta [E], all float32.");
}

} // namespace spectral::bindings

// The arrays of a geometry and a tree as Python passes them, checked and viewed.
#pragma once

#include <optional>
#include <string>

#include "arrays.h"
#include "spectral/bvh.h"
#include "spectral/geometry.h"
#include "spectral/router.h"

namespace spectral::bindings {

using OptionalArray = std::optional<py::array>;

inline Method method_named(const std::string &name) {
    if (name == "auto") {
        return Method::automatic;
    }
    if (name == "scan") {
        return Method::scan;
    }
    if (name == "search") {
        return Method::search;
    }
    throw UserError("method", "auto, scan or search", name);
}

/// The arrays that one router is made of; the router copies what it keeps.
struct RouterArrays {
    py::array mean, projection, centres, colour, beta;
    OptionalArray common, choice_bias, first, count, experts;

    [[nodiscard]] Geometry geometry() const {
        Geometry g;
        g.centres = data_of<float>("centres", centres, {any, any, 3});
        g.levels = static_cast<std::size_t>(centres.shape(0));
        g.experts = static_cast<std::size_t>(centres.shape(1));
        g.colour = data_of<float>("colour", colour, {centres.shape(1), any});
        g.colours = static_cast<std::size_t>(colour.shape(1));
        g.beta = data_of<float>("beta", beta, {centres.shape(1)});
        g.mean = data_of<float>("mean", mean, {any});
        g.hidden = static_cast<std::size_t>(mean.shape(0));
        g.projection = data_of<float>("projection", projection,
                                      {static_cast<py::ssize_t>(g.rank()), mean.shape(0)});
        g.common = optional_data<float>("common", common, {mean.shape(0)});
        g.choice_bias = optional_data<float>("choice_bias", choice_bias, {centres.shape(1)});
        if (g.experts == 0 || g.hidden == 0 || g.rank() == 0) {
            throw UserError("geometry", "at least one expert, one hidden column and one coordinate",
                            std::to_string(g.experts) + ", " + std::to_string(g.hidden) + " and " +
                                std::to_string(g.rank()));
        }
        return g;
    }

    [[nodiscard]] std::optional<Topology> topology() const {
        if (!first && !count && !experts) {
            return std::nullopt;
        }
        if (!first || !count || !experts) {
            throw UserError("bvh", "first, count and experts together", "only some of them");
        }
        Topology t;
        t.first = data_of<std::int32_t>("bvh.first", *first, {any});
        t.nodes = static_cast<std::size_t>(first->shape(0));
        t.count = data_of<std::int32_t>("bvh.count", *count, {first->shape(0)});
        t.permutation = data_of<std::int32_t>("bvh.experts", *experts, {centres.shape(1)});
        t.experts = static_cast<std::size_t>(centres.shape(1));
        return t;
    }
};

} // namespace spectral::bindings

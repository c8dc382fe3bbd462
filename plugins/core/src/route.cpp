// Reads a routing step's attributes by name, and checks that they fit one another.
#include "spectral/route.h"

#include <array>
#include <limits>
#include <utility>

#include "spectral/error.h"

namespace spectral {
namespace {

template <class Value, std::size_t N> using Names = std::array<std::pair<const char *, Value>, N>;

constexpr Names<GateScore, 4> scores{{{"softmax", GateScore::softmax},
                                      {"sigmoid", GateScore::sigmoid},
                                      {"sqrtsoftplus", GateScore::sqrtsoftplus},
                                      {"logits", GateScore::logits}}};
constexpr Names<GateWeight, 4> weights{{{"score", GateWeight::score},
                                        {"softmax", GateWeight::softmax},
                                        {"sigmoid", GateWeight::sigmoid},
                                        {"sparsemixer", GateWeight::sparsemixer}}};
constexpr Names<RouteMode, 4> modes{{{"dense", RouteMode::gate},
                                     {"exact", RouteMode::gate},
                                     {"prefilter", RouteMode::prefilter},
                                     {"geometric", RouteMode::geometric}}};

template <class Value, std::size_t N>
Value named(const Names<Value, N> &names, const std::string &key, const std::string &value) {
    std::string known;
    for (const auto &[name, meaning] : names) {
        if (value == name) {
            return meaning;
        }
        known += (known.empty() ? "" : ", ") + std::string(name);
    }
    throw UserError("BvhRoute." + key, "one of " + known, value, "export the model again");
}

template <class Value, std::size_t N>
bool assign(const Names<Value RouteSpec::*, N> &fields, RouteSpec &spec, const std::string &name,
            Value value) {
    for (const auto &[key, member] : fields) {
        if (name == key) {
            spec.*member = value;
            return true;
        }
    }
    return false;
}

template <class Value, std::size_t N>
void assign(const Names<Value GateRule::*, N> &fields, GateRule &rule, const std::string &name,
            Value value) {
    for (const auto &[key, member] : fields) {
        if (name == key) {
            rule.*member = value;
        }
    }
}

void require(bool holds, const char *what, const std::string &expected, std::int64_t found) {
    if (!holds) {
        throw UserError(std::string("BvhRoute.") + what, expected, std::to_string(found),
                        "export the model again");
    }
}

} // namespace

void set_attribute(RouteSpec &spec, const std::string &name, std::int64_t value) {
    constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
    require(value >= -limit && value <= limit, name.c_str(), "a 32-bit number", value);
    require(name != "format" || value == 1, "format", "1, what this library reads", value);
    static const Names<std::int32_t RouteSpec::*, 7> of_spec{
        {{"candidates", &RouteSpec::candidates},
         {"hidden_size", &RouteSpec::hidden},
         {"levels", &RouteSpec::levels},
         {"colours", &RouteSpec::colours},
         {"centred", &RouteSpec::centred},
         {"has_gate_bias", &RouteSpec::gate_bias},
         {"has_choice_bias", &RouteSpec::choice_bias}}};
    static const Names<std::int32_t GateRule::*, 5> of_rule{
        {{"experts", &GateRule::experts},
         {"top_k", &GateRule::top_k},
         {"groups", &GateRule::groups},
         {"groups_kept", &GateRule::groups_kept},
         {"normalise", &GateRule::normalise}}};
    const auto narrow = static_cast<std::int32_t>(value);
    if (!assign(of_spec, spec, name, narrow)) {
        assign(of_rule, spec.rule, name, narrow);
    }
}

void set_attribute(RouteSpec &spec, const std::string &name, float value) {
    static const Names<float GateRule::*, 6> of_rule{{{"normalise_eps", &GateRule::normalise_eps},
                                                      {"normalise_min", &GateRule::normalise_min},
                                                      {"scale", &GateRule::scale},
                                                      {"logit_scale", &GateRule::logit_scale},
                                                      {"softcap", &GateRule::softcap},
                                                      {"threshold", &GateRule::threshold}}};
    assign(of_rule, spec.rule, name, value);
}

void set_attribute(RouteSpec &spec, const std::string &name, const std::string &value) {
    if (name == "mode") {
        spec.mode = named(modes, name, value);
    } else if (name == "score") {
        spec.rule.score = named(scores, name, value);
    } else if (name == "weight") {
        spec.rule.weight = named(weights, name, value);
    } else if (name == "group_score") {
        spec.rule.group_top2 = value == "top2" ? 1 : 0;
    } else if (name == "group_fill") {
        spec.rule.fill_zero = value == "zero" ? 1 : 0;
    }
}

void check_spec(const RouteSpec &spec) {
    const GateRule &rule = spec.rule;
    require(rule.experts >= 1, "experts", "at least 1", rule.experts);
    require(rule.top_k >= 1 && rule.top_k <= rule.experts, "top_k", "1 to E", rule.top_k);
    require(spec.hidden >= 1, "hidden_size", "at least 1", spec.hidden);
    require(rule.groups >= 1 && rule.experts % rule.groups == 0, "groups", "a divisor of E",
            rule.groups);
    require(rule.groups_kept >= 1 && rule.groups_kept <= rule.groups, "groups_kept",
            "1 to the groups", rule.groups_kept);
    require(spec.mode != RouteMode::prefilter ||
                (spec.candidates >= rule.top_k && spec.candidates <= rule.experts),
            "candidates", "K to E", spec.candidates);
    require(!spec.geometric() || (spec.levels >= 0 && spec.colours >= 0 && spec.rows() >= 1),
            "levels", "a geometry of at least one coordinate", spec.levels);
}

} // namespace spectral

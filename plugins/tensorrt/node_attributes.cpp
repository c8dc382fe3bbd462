// Reads plugin fields: the node's attributes at build time, our own serialised fields at run time.
#include <cstring>
#include <string>

#include "device_step.h"
#include "route_plugin.h"
#include "spectral/error.h"

namespace spectral::trt {
namespace {

constexpr Field of_type(const char *name, FieldType type) {
    return {name, nullptr, type, 1};
}

std::string text_of(const Field &field) {
    const auto *data = static_cast<const char *>(field.data);
    const auto length = static_cast<std::size_t>(field.length > 0 ? field.length : 0);
    return {data, strnlen(data, length)};
}

template <class Value> Value number_of(const Field &field) {
    Value value{};
    std::memcpy(&value, field.data, sizeof(value));
    return value;
}

void read(NodeAttributes &node, const Field &field) {
    const std::string name = field.name;
    if (field.data == nullptr || field.length < 1) {
        return;
    }
    if (field.type == FieldType::text) {
        const std::string value = text_of(field);
        set_attribute(node.spec, name, value);
        node.digest = name == "digest" ? value : node.digest;
        node.float_weights = name == "returns" ? value == "float32" : node.float_weights;
    } else if (field.type == FieldType::i32) {
        set_attribute(node.spec, name, std::int64_t{number_of<std::int32_t>(field)});
    } else if (field.type == FieldType::f32) {
        set_attribute(node.spec, name, number_of<float>(field));
    }
}

void check_limits(const RouteSpec &spec) {
    check_spec(spec);
    cuda::check_step(spec);
}

} // namespace

const std::vector<Field> &FieldNames::all() {
    static const std::vector<Field> names = [] {
        std::vector<Field> fields;
        for (const char *name :
             {"format", "experts", "hidden_size", "candidates", "levels", "colours", "centred",
              "has_gate_bias", "has_choice_bias", "top_k", "groups", "groups_kept", "normalise"}) {
            fields.push_back(of_type(name, FieldType::i32));
        }
        for (const char *name :
             {"normalise_eps", "normalise_min", "scale", "logit_scale", "softcap", "threshold"}) {
            fields.push_back(of_type(name, FieldType::f32));
        }
        for (const char *name : {"layer", "digest", "mode", "score", "weight", "group_score",
                                 "group_fill", "returns"}) {
            fields.push_back(of_type(name, FieldType::text));
        }
        return fields;
    }();
    return names;
}

NodeAttributes NodeAttributes::of_fields(const Fields &fields) {
    NodeAttributes node;
    for (std::int32_t i = 0; i < fields.count; ++i) {
        read(node, fields.fields[i]);
    }
    check_limits(node.spec);
    return node;
}

NodeAttributes NodeAttributes::of_serial(const Fields &fields) {
    NodeAttributes node;
    bool known = false;
    bool whole = false;
    for (std::int32_t i = 0; i < fields.count; ++i) {
        const Field &field = fields.fields[i];
        const std::string name = field.name;
        if (name == "serial_format") {
            known = number_of<std::int32_t>(field) == serial_format;
        } else if (name == "spec" && field.length == static_cast<std::int32_t>(sizeof(RouteSpec))) {
            node.spec = number_of<RouteSpec>(field);
            whole = true;
        } else if (name == "digest") {
            node.digest = text_of(field);
        } else if (name == "float_weights") {
            node.float_weights = number_of<std::int32_t>(field) != 0;
        }
    }
    if (!known || !whole) {
        throw UserError("engine", "a BvhRoute of serial format " + std::to_string(serial_format),
                        "another one", "build the engine again with this library");
    }
    check_limits(node.spec);
    return node;
}

} // namespace spectral::trt

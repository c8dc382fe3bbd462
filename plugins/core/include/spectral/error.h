// Errors of the native core: the user's fault and our fault are different classes.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace spectral {

/// The input is wrong. Python receives it as spectral_runtime.errors.ConfigError with the same
/// parts.
class UserError : public std::runtime_error {
  public:
    UserError(std::string where_, std::string expected_, std::string found_,
              std::string remedy_ = "")
        : std::runtime_error(where_ + ": expected " + expected_ + ", found " + found_),
          where(std::move(where_)), expected(std::move(expected_)), found(std::move(found_)),
          remedy(std::move(remedy_)) {}

    std::string where, expected, found, remedy;
};

/// An invariant of this project does not hold: our bug. Python receives InternalError.
class InternalError : public std::logic_error {
  public:
    using std::logic_error::logic_error;
};

} // namespace spectral

// How an algorithm asks for parallel work without knowing who provides it.
#pragma once

#include <cstddef>
#include <functional>

namespace spectral {

/// Runs independent tasks; which thread runs which task must never change a result.
class Executor {
  public:
    Executor() = default;
    Executor(const Executor &) = delete;
    Executor &operator=(const Executor &) = delete;
    virtual ~Executor() = default;

    /// Threads that may run at once, the caller included.
    [[nodiscard]] virtual std::size_t threads() const = 0;

    /// Calls task(i) for every i in [0, count) and returns when all are done; rethrows the first
    /// error.
    virtual void run(std::size_t count, const std::function<void(std::size_t)> &task) = 0;
};

/// Runs everything in the calling thread.
class SerialExecutor final : public Executor {
  public:
    [[nodiscard]] std::size_t threads() const override { return 1; }
    void run(std::size_t count, const std::function<void(std::size_t)> &task) override {
        for (std::size_t i = 0; i < count; ++i) {
            task(i);
        }
    }
};

} // namespace spectral

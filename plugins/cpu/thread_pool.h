// A pool of worker threads behind the Executor interface.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "spectral/executor.h"

namespace spectral::cpu {

/// Workers sleep between calls; the calling thread works too. One run() at a time: others wait.
class ThreadPool final : public Executor {
  public:
    /// `threads` includes the caller; 0 means one per core.
    explicit ThreadPool(std::size_t threads);
    ~ThreadPool() override;

    [[nodiscard]] std::size_t threads() const override { return workers_.size() + 1; }
    void run(std::size_t count, const std::function<void(std::size_t)> &task) override;

  private:
    void work();
    void drain(const std::function<void(std::size_t)> &task, std::size_t count);

    [[nodiscard]] bool serial(std::size_t count) const;

    std::vector<std::thread> workers_;
    int process_; ///< a fork inherits the pool but not its threads
    std::mutex one_run_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(std::size_t)> *task_ = nullptr;
    std::size_t count_ = 0;
    std::size_t busy_ = 0;
    std::uint64_t generation_ = 0;
    bool stop_ = false;
    std::atomic<std::size_t> next_{0};
    std::exception_ptr error_;
};

/// The process-wide pool of that many threads (0: one per core), made on first use and kept: every
/// layer's router shares it.
std::shared_ptr<Executor> shared_pool(std::size_t threads);

} // namespace spectral::cpu

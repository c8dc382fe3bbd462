// Worker threads that share an atomic counter of tasks.
#include "thread_pool.h"

#include <algorithm>
#include <map>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace spectral::cpu {
namespace {

int this_process() {
#if defined(_WIN32)
    return 0;
#else
    return static_cast<int>(getpid());
#endif
}

} // namespace

ThreadPool::ThreadPool(std::size_t threads) : process_(this_process()) {
    if (threads == 0) {
        threads = std::max(1U, std::thread::hardware_concurrency());
    }
    workers_.reserve(threads - 1);
    for (std::size_t i = 1; i < threads; ++i) {
        workers_.emplace_back([this] { work(); });
    }
}

ThreadPool::~ThreadPool() {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread &worker : workers_) {
        worker.join();
    }
}

void ThreadPool::run(std::size_t count, const std::function<void(std::size_t)> &task) {
    if (serial(count)) {
        for (std::size_t i = 0; i < count; ++i) {
            task(i);
        }
        return;
    }
    const std::lock_guard one_run(one_run_);
    {
        const std::lock_guard lock(mutex_);
        task_ = &task;
        count_ = count;
        next_ = 0;
        error_ = nullptr;
        busy_ = workers_.size();
        ++generation_;
    }
    wake_.notify_all();
    drain(task, count);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    if (error_) {
        std::rethrow_exception(error_);
    }
}

bool ThreadPool::serial(std::size_t count) const {
    return workers_.empty() || count <= 1 || process_ != this_process();
}

void ThreadPool::drain(const std::function<void(std::size_t)> &task, std::size_t count) {
    for (std::size_t i = next_++; i < count; i = next_++) {
        try {
            task(i);
        } catch (...) {
            const std::lock_guard lock(mutex_);
            if (!error_) {
                error_ = std::current_exception();
            }
            next_ = count;
        }
    }
}

void ThreadPool::work() {
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (true) {
        wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
        if (stop_) {
            return;
        }
        seen = generation_;
        const auto &task = *task_;
        const std::size_t count = count_;
        lock.unlock();
        drain(task, count);
        lock.lock();
        if (--busy_ == 0) {
            done_.notify_one();
        }
    }
}

std::shared_ptr<Executor> shared_pool(std::size_t threads) {
    static std::mutex mutex;
    // Never destroyed: joining threads while the process ends can deadlock.
    static auto *pools = new std::map<std::size_t, std::shared_ptr<Executor>>;
    const std::size_t wanted =
        threads != 0 ? threads : std::max(1U, std::thread::hardware_concurrency());
    const std::lock_guard lock(mutex);
    std::shared_ptr<Executor> &pool = (*pools)[wanted];
    if (!pool) {
        pool = std::make_shared<ThreadPool>(wanted);
    }
    return pool;
}

} // namespace spectral::cpu

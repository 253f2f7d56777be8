// A rank's side of a communicator.
#pragma once
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "wire.h"

namespace nccl {

enum : int {
    SUCCESS = 0,
    UNHANDLED_CUDA_ERROR = 1,
    SYSTEM_ERROR = 2,
    INTERNAL_ERROR = 3,
    INVALID_ARGUMENT = 4,
    INVALID_USAGE = 5,
    REMOTE_ERROR = 6,
    IN_PROGRESS = 7,
};

struct Operation {
    Header header;
    const void* send;
    void* receive;
    void* stream;
};

class Communicator : public std::enable_shared_from_this<Communicator> {
   public:
    Communicator(int socket, int rank, int world, bool blocking) : socket_(socket), rank_(rank), world_(world), blocking_(blocking) {}
    ~Communicator();

    int rank() const { return rank_; }
    int world() const { return world_; }
    bool blocking() const { return blocking_; }

    // The state that ncclCommGetAsyncError tells. What is in progress takes some questions until it is done.
    int state();
    // Waits until nothing is in progress.
    int settle();
    // These operations begin once they are no longer in progress.
    void submit(std::vector<Operation> operations);
    void finalize();
    // Ends whatever is under way; from any thread, at any time.
    void abort();

   private:
    void queue(const Operation& operation);
    void run(const Operation& operation);
    // Notes an error and waits until the communicator is aborted, as a kernel does whose peers do not answer.
    void hang(int error);
    bool is_here();

    const int socket_, rank_, world_;
    const bool blocking_;
    bool here_ = false, finalizing_ = false, said_goodbye_ = false;
    std::mutex mutex_;
    std::condition_variable changed_;
    int questions_ = 3;
    std::vector<Operation> submitted_;
    std::atomic<int> error_{SUCCESS};
    std::atomic<bool> aborted_{false};
    std::atomic<int> outstanding_{0};
    unsigned long operations_ = 0;
};

}  // namespace nccl

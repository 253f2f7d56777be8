#include "communicator.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <deque>
#include <thread>

#include "library.h"

namespace nccl {
namespace {

// A GPU works on while its host does something else, and another rank may wait for it. A stream runs when its host waits; so
// here is a thread that takes over where an operation has been queued for a while.
class Progress {
   public:
    static Progress& get() {
        // Never destroyed: its thread runs until the process ends.
        static Progress* all = new Progress;
        return *all;
    }

    void queued(void* stream) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!started_) std::thread([this] { work(); }).detach();
        started_ = true;
        streams_.push_back(stream);
        changed_.notify_one();
    }

   private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<void*> streams_;
    bool started_ = false;

    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            changed_.wait(lock, [this] { return !streams_.empty(); });
            lock.unlock();
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
            lock.lock();
            const std::deque<void*> due = std::move(streams_);
            streams_.clear();
            lock.unlock();
            for (void* stream : due) emulator::finish_stream(stream);
            lock.lock();
        }
    }
};

// EMULATOR_NCCL_ERROR="1:7": rank 1's operation 7, counted from 1, fails. EMULATOR_NCCL_HANG likewise: it never ends.
bool is_meant(const char* setting, int rank, unsigned long operation) {
    const char* text = getenv(setting);
    int meant = -1;
    unsigned long at = 0;
    return text != nullptr && sscanf(text, "%d:%lu", &meant, &at) == 2 && meant == rank && at == operation;
}

}  // namespace

Communicator::~Communicator() {
    if (socket_ >= 0) close(socket_);
}

bool Communicator::is_here() {
    if (here_ || socket_ < 0) return here_;
    pollfd polled{socket_, POLLIN, 0};
    if (poll(&polled, 1, 0) <= 0) return false;
    unsigned char answer = 0;
    if (!receive_all(socket_, &answer, 1)) error_ = REMOTE_ERROR;
    if (answer != 0) error_ = INVALID_USAGE;
    return here_ = true;
}

int Communicator::state() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error_ != SUCCESS) return error_;
    if (!is_here()) return IN_PROGRESS;
    if (error_ != SUCCESS) return error_;
    if (questions_ > 0) {
        questions_--;
        return IN_PROGRESS;
    }
    if (!submitted_.empty()) {
        // Only a thread with the GPU's context can queue work, and not while another one waits for a rank in the driver.
        const bool queued = emulator::has_context() && emulator::if_idle([this] {
            for (const Operation& operation : submitted_) queue(operation);
        });
        if (!queued) return IN_PROGRESS;
        submitted_.clear();
    }
    if (finalizing_) {
        if (outstanding_ > 0) return IN_PROGRESS;
        if (!said_goodbye_) {
            Header header{};
            header.kind = Kind::finalize;
            if (!send_all(socket_, &header, sizeof header)) return error_ = REMOTE_ERROR;
            said_goodbye_ = true;
        }
        unsigned char done = 0;
        pollfd polled{socket_, POLLIN, 0};
        if (poll(&polled, 1, 0) <= 0) return IN_PROGRESS;
        if (!receive_all(socket_, &done, 1)) return error_ = REMOTE_ERROR;
        finalizing_ = false;
    }
    return SUCCESS;
}

int Communicator::settle() {
    for (;;) {
        const int now = state();
        if (now != IN_PROGRESS) return now;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

void Communicator::submit(std::vector<Operation> operations) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Operation& operation : operations) submitted_.push_back(operation);
    questions_ = 2;
}

void Communicator::finalize() {
    const std::lock_guard<std::mutex> lock(mutex_);
    finalizing_ = true;
}

void Communicator::abort() {
    aborted_ = true;
    if (socket_ >= 0) shutdown(socket_, SHUT_RDWR);
    // Whoever hangs looks at `aborted_` before it waits.
    { const std::lock_guard<std::mutex> lock(mutex_); }
    changed_.notify_all();
}

void Communicator::queue(const Operation& operation) {
    auto self = shared_from_this();
    const auto work = [self, operation] {
        self->run(operation);
        self->outstanding_--;
    };
    outstanding_++;
    if (!emulator::enqueue_library(operation.stream, "an operation of NCCL", work)) {
        error_ = INVALID_ARGUMENT;
        return;
    }
    Progress::get().queued(operation.stream);
}

void Communicator::run(const Operation& operation) {
    if (aborted_) return;
    const Header& header = operation.header;
    const size_t element = size_of(header.type), bytes = header.count * element;
    const bool root = header.root == rank_;
    const bool sends = header.kind != Kind::broadcast || root, receives = header.kind != Kind::reduce || root;
    if (sends) emulator::check_range("what is sent", operation.send, bytes, element);
    if (receives) emulator::check_range("what is received", operation.receive, bytes, element);
    operations_++;
    if (is_meant("EMULATOR_NCCL_ERROR", rank_, operations_)) return hang(SYSTEM_ERROR);
    if (is_meant("EMULATOR_NCCL_HANG", rank_, operations_)) return hang(SUCCESS);
    bool well = send_all(socket_, &header, sizeof header);
    well = well && (!sends || send_all(socket_, operation.send, bytes));
    well = well && (!receives || receive_all(socket_, operation.receive, bytes));
    if (!well) hang(REMOTE_ERROR);
}

void Communicator::hang(int error) {
    if (aborted_) return;
    error_ = error;
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return aborted_.load(); });
}

}  // namespace nccl

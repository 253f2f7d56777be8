// The hub: a thread of the process that made the id. It has a connection to every rank, takes their operations one after
// another, and computes what NCCL would: sums in the order of a ring, each partial sum rounded to the type.
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "wire.h"

namespace nccl {
namespace {

constexpr int FLOAT32 = 7, FLOAT64 = 8, BFLOAT16 = 9;

// An abstract name: it is gone with the process.
socklen_t address_of(const char* name, sockaddr_un& address) {
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    const size_t length = strnlen(name, sizeof address.sun_path - 2);
    memcpy(address.sun_path + 1, name, length);
    return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
}

float widen(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t round_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <class T>
void add(std::vector<unsigned char>& sum, const std::vector<unsigned char>& more, size_t from, size_t to) {
    T* s = reinterpret_cast<T*>(sum.data());
    const T* m = reinterpret_cast<const T*>(more.data());
    for (size_t i = from; i < to; i++) s[i] += m[i];
}

void add_elements(int type, std::vector<unsigned char>& sum, const std::vector<unsigned char>& more, size_t from, size_t to) {
    if (type == FLOAT32) return add<float>(sum, more, from, to);
    if (type == FLOAT64) return add<double>(sum, more, from, to);
    uint16_t* s = reinterpret_cast<uint16_t*>(sum.data());
    const uint16_t* m = reinterpret_cast<const uint16_t*>(more.data());
    for (size_t i = from; i < to; i++) s[i] = round_to_bf16(widen(s[i]) + widen(m[i]));
}

class Hub {
   public:
    explicit Hub(int listener) : listener_(listener) {}
    ~Hub() {
        close(listener_);
        for (const int rank : ranks_)
            if (rank >= 0) close(rank);
    }

    void serve() {
        if (!meet()) return;
        while (next()) {
        }
    }

   private:
    int listener_;
    std::vector<int> ranks_;

    // Waits for all ranks and tells them that they are there, or that two of them have one GPU.
    bool meet() {
        size_t missing = 1;
        std::vector<int> devices;
        bool shared = false;
        while (missing > 0) {
            const int rank = accept(listener_, nullptr, nullptr);
            if (rank < 0) return false;
            Hello hello{};
            const bool heard = receive_all(rank, &hello, sizeof hello);
            if (heard && ranks_.empty()) {
                missing = static_cast<size_t>(hello.world);
                ranks_.assign(missing, -1);
            }
            if (!heard || static_cast<size_t>(hello.world) != ranks_.size() || hello.rank < 0 || hello.rank >= hello.world || ranks_[static_cast<size_t>(hello.rank)] >= 0) {
                close(rank);
                continue;
            }
            for (const int device : devices) shared = shared || (device == hello.device && hello.shares == 0);
            devices.push_back(hello.device);
            ranks_[static_cast<size_t>(hello.rank)] = rank;
            missing--;
        }
        const unsigned char answer = shared ? 1 : 0;
        for (const int rank : ranks_)
            if (!send_all(rank, &answer, 1)) return false;
        return !shared;
    }

    // Waits until a rank says something; false if any has gone.
    bool wait_for(size_t rank) {
        std::vector<pollfd> polled;
        for (const int socket : ranks_) polled.push_back({socket, POLLRDHUP, 0});
        polled[rank].events |= POLLIN;
        for (;;) {
            if (poll(polled.data(), polled.size(), -1) < 0) {
                if (errno == EINTR) continue;
                return false;
            }
            for (const pollfd& p : polled)
                if ((p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0) return false;
            if ((polled[rank].revents & POLLIN) != 0) return true;
        }
    }

    // One operation; false if there are no more.
    bool next() {
        Header header{};
        std::vector<std::vector<unsigned char>> data(ranks_.size());
        for (size_t r = 0; r < ranks_.size(); r++) {
            Header of{};
            if (!wait_for(r) || !receive_all(ranks_[r], &of, sizeof of)) return false;
            if (r == 0) header = of;
            if (memcmp(&header, &of, sizeof of) != 0) {
                fprintf(stderr,
                        "emulator: ncclInvalidUsage: rank 0 asks for operation %u of %llu elements of type %d with root %d, rank %zu for %u of %llu of type %d with root %d\n",
                        static_cast<unsigned>(header.kind), static_cast<unsigned long long>(header.count), header.type, header.root, r,
                        static_cast<unsigned>(of.kind), static_cast<unsigned long long>(of.count), of.type, of.root);
                return false;
            }
            const bool contributes = header.kind != Kind::finalize && (header.kind != Kind::broadcast || static_cast<size_t>(header.root) == r);
            if (!contributes) continue;
            data[r].resize(header.count * size_of(header.type));
            if (!receive_all(ranks_[r], data[r].data(), data[r].size())) return false;
        }
        answer(header, data);
        return header.kind != Kind::finalize;
    }

    void answer(const Header& header, const std::vector<std::vector<unsigned char>>& data) {
        const size_t world = ranks_.size(), root = static_cast<size_t>(header.root);
        std::vector<unsigned char> result(1);
        switch (header.kind) {
            case Kind::finalize: break;
            case Kind::broadcast: result = data[root]; break;
            case Kind::reduce: result = sum(header, data, 0, header.count, (root + 1) % world); break;
            case Kind::all_reduce:
                // Of each of `world` parts the sum begins at another rank.
                result.resize(header.count * size_of(header.type));
                for (size_t part = 0; part < world; part++) {
                    const size_t from = header.count * part / world, to = header.count * (part + 1) / world, size = size_of(header.type);
                    const auto of = sum(header, data, from, to, (part + 1) % world);
                    if (to > from) memcpy(result.data() + from * size, of.data() + from * size, (to - from) * size);
                }
        }
        for (size_t r = 0; r < world; r++)
            if (header.kind != Kind::reduce || r == root) send_all(ranks_[r], result.data(), result.size());
    }

    std::vector<unsigned char> sum(const Header& header, const std::vector<std::vector<unsigned char>>& data, size_t from, size_t to, size_t first) {
        std::vector<unsigned char> result = data[first];
        for (size_t i = 1; i < data.size(); i++) add_elements(header.type, result, data[(first + i) % data.size()], from, to);
        return result;
    }
};

}  // namespace

size_t size_of(int type) { return type == FLOAT32 ? 4 : type == FLOAT64 ? 8 : type == BFLOAT16 ? 2 : 0; }

bool send_all(int socket, const void* data, size_t bytes) {
    const char* at = static_cast<const char*>(data);
    while (bytes > 0) {
        const ssize_t sent = send(socket, at, bytes, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return false;
        at += sent;
        bytes -= static_cast<size_t>(sent);
    }
    return true;
}

bool receive_all(int socket, void* data, size_t bytes) {
    char* at = static_cast<char*>(data);
    while (bytes > 0) {
        const ssize_t received = recv(socket, at, bytes, 0);
        if (received < 0 && errno == EINTR) continue;
        if (received <= 0) return false;
        at += received;
        bytes -= static_cast<size_t>(received);
    }
    return true;
}

bool open_hub(const char* name) {
    const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address;
    const socklen_t length = address_of(name, address);
    if (listener < 0 || bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(listener, 64) != 0) return false;
    std::thread([listener] { Hub(listener).serve(); }).detach();
    return true;
}

int connect_to_hub(const char* name) {
    const int rank = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address;
    const socklen_t length = address_of(name, address);
    if (rank >= 0 && connect(rank, reinterpret_cast<sockaddr*>(&address), length) == 0) return rank;
    if (rank >= 0) close(rank);
    return -1;
}

}  // namespace nccl

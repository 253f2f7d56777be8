// What ranks and the hub say to each other over their sockets.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace nccl {

enum class Kind : uint32_t { all_reduce, reduce, broadcast, finalize };

struct Hello {
    int32_t rank, world;
    // The same for ranks that share a GPU.
    int32_t device, shares;
};

// One operation: all ranks send the same, and those that contribute their elements after it.
struct Header {
    Kind kind;
    int32_t type;
    int32_t root;
    int32_t unused;
    uint64_t count;
};

// ncclDataType_t; 0 for those that are not emulated.
size_t size_of(int type);

bool send_all(int socket, const void* data, size_t bytes);
bool receive_all(int socket, void* data, size_t bytes);

// Opens the place where ranks meet and serves them on a thread of this process; false if it cannot.
bool open_hub(const char* name);
// A connection to the place of that name, or -1.
int connect_to_hub(const char* name);

}  // namespace nccl

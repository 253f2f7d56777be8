// The copy engine: tiles and rows of bytes between global and shared memory. A load poisons its destination when it is issued
// and writes it later; a store reads shared memory later, and may write global memory later still.
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "block.h"
#include "emulator/hopper.h"
#include "emulator/runtime.h"
#include "library.h"
#include "mbarrier.h"
#include "memory.h"
#include "proxy.h"
#include "shared.h"
#include "tensor_map.h"
#include "threads.h"

namespace emulator {
namespace {

constexpr unsigned CHUNK = 16;

// A box of a matrix and where it lies in shared memory.
struct Tile {
    TensorMapFields map;
    int64_t row, column;
    unsigned shared;

    unsigned row_bytes() const { return map.box_columns * map.element; }
    unsigned bytes() const { return map.box_rows * row_bytes(); }
    unsigned chunk_address(unsigned r, unsigned offset) const {
        return swizzled(shared + r * row_bytes() + offset, map.swizzle);
    }
    // Of row r of the box: its bytes in the matrix, and where they begin in the box's row.
    struct Span {
        unsigned char* global;
        size_t at, bytes;
    };
    Span inside(unsigned r) const {
        const int64_t y = row + r, first = std::max<int64_t>(column, 0),
                      last = std::min<int64_t>(column + map.box_columns, static_cast<int64_t>(map.columns));
        if (y < 0 || y >= static_cast<int64_t>(map.rows) || first >= last) return {nullptr, 0, 0};
        const uint64_t at = map.address + static_cast<uint64_t>(y) * map.stride + static_cast<uint64_t>(first) * map.element;
        return {reinterpret_cast<unsigned char*>(at), static_cast<size_t>(first - column) * map.element,
                static_cast<size_t>(last - first) * map.element};
    }
};

struct Store {
    Tile tile;
    unsigned fences;
    bool read = false;
    std::vector<unsigned char> bytes = {};
};

struct ThreadStores {
    std::vector<std::shared_ptr<Store>> open;
    std::vector<std::vector<std::shared_ptr<Store>>> groups;
};

auto& stores = *new std::vector<ThreadStores>(MAX_THREADS);
unsigned loads_left = 0;
auto& writes = *new std::vector<std::shared_ptr<Store>>;  // read, not yet written to global memory

const char* const LOAD = "a copy to shared memory";
const char* const STORE = "a copy from shared memory";

Tile tile_of(const void* shared, const void* map, int row, int column, const char* what) {
    TensorMapFields fields;
    if (reinterpret_cast<uintptr_t>(map) % 64 != 0) fail("%s: the tensor map at %p is not aligned to 64 bytes", what, map);
    memcpy(&fields, map, sizeof fields);
    if (fields.mark != TENSOR_MAP_MARK) fail("%s: what lies at %p is not a tensor map", what, map);
    const Tile tile{fields, row, column, shared_address(shared)};
    const unsigned align = fields.swizzle == 0 ? 128 : 128u << fields.swizzle;
    if (tile.shared % align != 0)
        fail("%s: the tile at shared address %#x is not aligned to %u bytes", what, tile.shared, align);
    if (!is_shared(shared, tile.bytes()))
        fail("%s: the tile of %u bytes at shared address %#x is not in one array of shared memory", what, tile.bytes(),
             tile.shared);
    // All rows that are touched lie in one buffer.
    const unsigned char *first = nullptr, *end = nullptr;
    for (unsigned r = 0; r < fields.box_rows; r++) {
        const Tile::Span span = tile.inside(r);
        if (span.bytes == 0) continue;
        if (first == nullptr) first = span.global;
        end = span.global + span.bytes;
    }
    if (first != nullptr) check_range(what, first, static_cast<size_t>(end - first), 1);
    return tile;
}

void poison(unsigned address) {
    memset(proxy_write(address, LOAD), 0xff, CHUNK);
    proxy_wrote(address);
}

void write_chunk(unsigned address, const unsigned char* bytes) {
    memcpy(proxy_write(address, LOAD), bytes, CHUNK);
    proxy_wrote(address);
}

void load(const Tile& tile) {
    std::vector<unsigned char> line(tile.row_bytes());
    for (unsigned r = 0; r < tile.map.box_rows; r++) {
        std::fill(line.begin(), line.end(), static_cast<unsigned char>(0));
        const Tile::Span span = tile.inside(r);
        if (span.bytes != 0) memcpy(line.data() + span.at, span.global, span.bytes);
        for (unsigned at = 0; at < line.size(); at += CHUNK) write_chunk(tile.chunk_address(r, at), line.data() + at);
    }
}

void write_store(const Store& store) {
    const unsigned pitch = store.tile.row_bytes();
    for (unsigned r = 0; r < store.tile.map.box_rows; r++) {
        const Tile::Span span = store.tile.inside(r);
        if (span.bytes != 0) memcpy(span.global, store.bytes.data() + r * pitch + span.at, span.bytes);
    }
}

void read_store(const std::shared_ptr<Store>& store) {
    if (store->read) return;
    store->read = true;
    const Tile& tile = store->tile;
    store->bytes.resize(tile.bytes());
    unsigned char* to = store->bytes.data();
    for (unsigned r = 0; r < tile.map.box_rows; r++)
        for (unsigned at = 0; at < tile.row_bytes(); at += CHUNK, to += CHUNK)
            memcpy(to, proxy_read(tile.chunk_address(r, at), store->fences, STORE), CHUNK);
    // Nobody in this kernel knows when it is written.
    if (block_random().below(2) == 0)
        write_store(*store);
    else
        writes.push_back(store);
}

}  // namespace

void start_bulk() {
    for (unsigned t = 0; t < thread_count(); t++) {
        stores[t].open.clear();
        stores[t].groups.clear();
    }
    loads_left = 0;
    start_proxy();
}

void tma_load(void* shared, const void* map, int row, int column, void* barrier) {
    require_published(barrier);
    const Tile tile = tile_of(shared, map, row, column, LOAD);
    for (unsigned at = 0; at < tile.bytes(); at += CHUNK) poison(tile.shared + at);
    loads_left++;
    beside([tile, barrier] {
        load(tile);
        loads_left--;
        arrive_bytes(barrier, tile.bytes());
    });
}

void bulk_load(void* shared, const void* global, unsigned bytes, void* barrier) {
    require_published(barrier);
    if (bytes == 0 || bytes % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0 || shared_address(shared) % 16 != 0)
        fail("%s of %u bytes from %p to shared address %#x: all three are multiples of 16", LOAD, bytes, global,
             shared_address(shared));
    if (!is_shared(shared, bytes))
        fail("%s: %u bytes at shared address %#x are not in one array of shared memory", LOAD, bytes, shared_address(shared));
    check_range(LOAD, global, bytes, 16);
    const unsigned to = shared_address(shared);
    for (unsigned at = 0; at < bytes; at += CHUNK) poison(to + at);
    loads_left++;
    const unsigned char* from = static_cast<const unsigned char*>(global);
    beside([to, from, bytes, barrier] {
        for (unsigned at = 0; at < bytes; at += CHUNK) write_chunk(to + at, from + at);
        loads_left--;
        arrive_bytes(barrier, bytes);
    });
}

void tma_store(const void* map, int row, int column, const void* shared) {
    const auto store = std::make_shared<Store>(Store{tile_of(shared, map, row, column, STORE), fences()});
    stores[thread_index()].open.push_back(store);
    beside([store] { read_store(store); });
}

void tma_commit() {
    ThreadStores& mine = stores[thread_index()];
    mine.groups.push_back(std::move(mine.open));
    mine.open.clear();
}

void tma_wait(int pending) {
    auto& groups = stores[thread_index()].groups;
    const size_t keep = std::min(groups.size(), static_cast<size_t>(std::max(pending, 0))), done = groups.size() - keep;
    for (size_t g = 0; g < done; g++)
        for (const auto& store : groups[g]) read_store(store);
    groups.erase(groups.begin(), groups.begin() + static_cast<ptrdiff_t>(done));
}

void leave_bulk() {
    const ThreadStores& mine = stores[thread_index()];
    if (!mine.open.empty()) fail("leaves the kernel with copies from shared memory that commit_stores did not follow");
    if (!mine.groups.empty()) fail("leaves the kernel without having waited for its copies from shared memory");
}

void finish_bulk() {
    for (const auto& store : writes) write_store(*store);
    writes.clear();
    if (loads_left != 0) fail("all threads have left, and %u copies to shared memory still run", loads_left);
}

}  // namespace emulator

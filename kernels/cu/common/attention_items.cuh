// Which pieces of an attention over packed sequences a persistent worker takes, and in which order.
//
// An item is 128 queries of one head of one sequence, in two halves of 64. The last queries of a sequence, if they are 64 or fewer,
// are joined with the same queries of the next head, so that both halves are used. The longest sequences' items come first, and
// worker w of G takes items w, 2 G - 1 - w, 2 G + w, ...: to and fro, so that the workers' sums are nearly equal. The order depends
// on the lengths alone, and every worker finds it by itself: a counting sort in one warp, of up to 512 sequences at a time.
#pragma once
#include "common/attention.cuh"

namespace attention {

constexpr unsigned ITEM_ROWS = 128, ITEM_HALF = ITEM_ROWS / 2;
constexpr unsigned SORTED = 512;  // sequences

struct Item {
    unsigned row, rows;  // first query in the batch, and how many; 0 rows: there are no more items
    unsigned first_key, keys;
    unsigned head;
    unsigned paired;  // 1: the second half is the same rows of the next head
};

// In shared memory, one warp's.
struct ItemTable {
    unsigned sequence[SORTED];   // the longest first
    unsigned first[SORTED + 1];  // first item of each
    unsigned items[SORTED];      // of each sequence, in the batch's order
    unsigned bucket[SORTED];     // of each sequence, by its keys; the longest are in 0
};

// Blocks of 128 queries that are not joined.
__device__ __forceinline__ unsigned whole_blocks(unsigned queries) { return (queries + ITEM_HALF - 1) / ITEM_ROWS; }

__device__ __forceinline__ unsigned items_of(unsigned queries, unsigned heads) {
    const unsigned whole = whole_blocks(queries);
    return whole * heads + (queries > whole * ITEM_ROWS ? (heads + 1) / 2 : 0);
}

// Votes on each bit of the lanes' values below 32: who has which.
struct Peers {
    unsigned bits[5], valid;

    __device__ __forceinline__ Peers(unsigned value, bool is_valid) {
        valid = __ballot_sync(ALL_LANES, is_valid);
#pragma unroll
        for (int i = 0; i < 5; i++) bits[i] = __ballot_sync(ALL_LANES, value >> i & 1);
    }
    __device__ __forceinline__ unsigned of(unsigned value) const {
        unsigned mask = valid;
#pragma unroll
        for (int i = 0; i < 5; i++) mask &= value >> i & 1 ? bits[i] : ~bits[i];
        return mask;
    }
};

// Sum of the values of this lane and those before it.
__device__ __forceinline__ unsigned inclusive_sum(unsigned x, unsigned lane) {
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        const unsigned before = __shfl_up_sync(ALL_LANES, x, distance);
        if (lane >= static_cast<unsigned>(distance)) x += before;
    }
    return x;
}

// Fills the table for `count` sequences from `begin` on, whose items are counted from `first_item`; returns the number
// after the last item. All lanes of one warp call it.
__device__ __forceinline__ unsigned sort_sequences(ItemTable& table, const AttentionSizes& s, unsigned begin, unsigned count, unsigned first_item) {
    const unsigned lane = threadIdx.x % WARP, before = (1u << lane) - 1;
    unsigned place = 0;  // of the next sequence of bucket `lane`
#pragma unroll 4
    for (unsigned at = 0; at < count; at += WARP) {
        const unsigned i = at + lane, b = begin + min(i, count - 1);
        const unsigned keys = __ldg(s.cu_k + b + 1) - __ldg(s.cu_k + b), queries = __ldg(s.cu_q + b + 1) - __ldg(s.cu_q + b);
        const unsigned bucket = WARP - 1 - min(keys / 64, static_cast<unsigned>(WARP - 1));
        if (i < count) table.items[i] = keys == 0 ? 0 : items_of(queries, s.heads), table.bucket[i] = bucket;
        place += __popc(Peers(bucket, i < count).of(lane));
    }
    place = inclusive_sum(place, lane) - place;
    __syncwarp();
    for (unsigned at = 0; at < count; at += WARP) {
        const unsigned i = at + lane, bucket = i < count ? table.bucket[i] : 0;
        const Peers peers(bucket, i < count);
        const unsigned to = __shfl_sync(ALL_LANES, place, bucket) + __popc(peers.of(bucket) & before);
        if (i < count) table.sequence[to] = i;
        place += __popc(peers.of(lane));
    }
    __syncwarp();
    for (unsigned at = 0; at < count; at += WARP) {
        const unsigned i = at + lane, items = i < count ? table.items[table.sequence[i]] : 0, sum = inclusive_sum(items, lane);
        if (i < count) table.first[i] = first_item + sum - items;
        first_item += __shfl_sync(ALL_LANES, sum, WARP - 1);
    }
    if (lane == 0) table.first[count] = first_item;
    __syncwarp();
    return first_item;
}

// The items of one worker in their order. All lanes of one warp call each function.
class Items {
  public:
    __device__ __forceinline__ Items(ItemTable& table, const AttentionSizes& sizes, unsigned worker, unsigned workers)
        : table(table), s(sizes), worker(worker), workers(workers), item(worker) {}

    // The next item; none left if it has no rows.
    __device__ __forceinline__ Item next() {
        while (item >= end) {
            begin += count;
            if (begin == s.sequences) return {};
            count = min(s.sequences - begin, SORTED);
            rank = 0;
            end = sort_sequences(table, s, begin, count, end);
        }
        const unsigned lane = threadIdx.x % WARP;
        for (;;) {  // the last of the sequences that begin at this item or before it
            const unsigned more = __ballot_sync(ALL_LANES, rank + lane + 1 < count && table.first[min(rank + lane + 1, count)] <= item);
            rank += __popc(more);
            if (more != ALL_LANES) break;
        }
        const unsigned b = begin + table.sequence[rank], index = item - table.first[rank];
        round++;
        item = round * workers + (round % 2 == 0 ? worker : workers - 1 - worker);
        return of(__ldg(s.cu_q + b), __ldg(s.cu_q + b + 1), __ldg(s.cu_k + b), __ldg(s.cu_k + b + 1), index);
    }

  private:
    // Number `index` of a sequence's items: all heads of its first block of queries, then those of the next one.
    __device__ __forceinline__ Item of(unsigned q_begin, unsigned q_end, unsigned k_begin, unsigned k_end, unsigned index) const {
        const unsigned whole = whole_blocks(q_end - q_begin), block = min(index / s.heads, whole), row = q_begin + block * ITEM_ROWS;
        const unsigned head = (index - block * s.heads) * (block == whole ? 2 : 1);
        return {row, min(q_end - row, ITEM_ROWS), k_begin, k_end - k_begin, head, block == whole && head + 1 < s.heads};
    }

    ItemTable& table;
    const AttentionSizes& s;
    const unsigned worker, workers;
    unsigned item, round = 0;                // the next item's number
    unsigned begin = 0, count = 0, end = 0;  // sequences of the table, number after their last item
    unsigned rank = 0;                       // of the last item's sequence in the table
};

}  // namespace attention

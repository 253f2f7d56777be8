// What all attention kernels share: which rows a block works on, and the dropout of attention weights.
#pragma once
#include "common/philox.cuh"

// The sizes of an attention over packed sequences; `SizesArg` of src/cuda/attention/mod.rs.
struct AttentionSizes {
    const unsigned* cu_q;  // [B + 1] offsets of the query rows, from 0 to R
    const unsigned* cu_k;  // [B + 1] offsets of the key rows, from 0 to T
    unsigned queries;      // R
    unsigned heads;
    unsigned head_size;
    unsigned q_stride;   // elements from one row of q (or dq) to the next
    unsigned kv_stride;  // the same of k and v
    unsigned wide;       // 1 where every head of every row starts at a multiple of 16 bytes and is a multiple of them long
    float scale;         // 1 / sqrt(head_size)
    unsigned sequences;  // B
};

// The sequence and the head of a block. The grid is (blocks of the longest sequence, heads, sequences).
struct AttentionTask {
    unsigned q_start, queries, k_start, keys, head;
};

__device__ __forceinline__ AttentionTask attention_task(const AttentionSizes& s) {
    const unsigned q = s.cu_q[blockIdx.z], k = s.cu_k[blockIdx.z];
    return {q, s.cu_q[blockIdx.z + 1] - q, k, s.cu_k[blockIdx.z + 1] - k, blockIdx.y};
}

// Where the task's head begins in a row of a buffer with `stride` elements a row.
__device__ __forceinline__ size_t attention_offset(size_t row, unsigned stride, const AttentionTask& task, unsigned head_size) {
    return row * stride + task.head * head_size;
}

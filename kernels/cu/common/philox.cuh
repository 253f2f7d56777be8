// Philox4x32-10 (Salmon et al., SC 2011) and the dropout masks drawn from it: word for word those of src/philox.rs.
#pragma once
#include "common/base.cuh"

struct Philox {
    unsigned at[4];
};

__device__ __forceinline__ Philox philox4x32(unsigned long long key, unsigned c0, unsigned c1, unsigned c2, unsigned c3) {
    unsigned k0 = static_cast<unsigned>(key), k1 = static_cast<unsigned>(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// Byte i of the 16 that one call gives.
__device__ __forceinline__ unsigned philox_byte(const Philox& draw, int i) {
    return (draw.at[i / 4] >> (8 * (i % 4))) & 0xffu;
}

// One dropout layer in one step. An element is dropped where its byte is below `threshold`; 0 is no dropout, and row_keys
// is not read then. Kept elements are scaled by `scale` = 256 / (256 - threshold).
struct Dropout {
    const unsigned* row_keys;
    unsigned long long key;
    unsigned site;
    unsigned threshold;
    float scale;
    unsigned unused;
};

// The draw of columns 16 * group to 16 * group + 15 of a row of hidden states.
__device__ __forceinline__ Philox hidden_draw(const Dropout& d, unsigned row_key, unsigned group) {
    return philox4x32(d.key, group, row_key, d.site, 0);
}

// The draw of one query's attention weights over the keys 64 * block + 8 * i + 2 * quad + {0, 1}, i < 8, of its sequence:
// byte 2 * i + {0, 1}. A thread of an mma accumulator (m16n8) holds just these of a row.
__device__ __forceinline__ Philox attention_draw(const Dropout& d, unsigned row_key, unsigned head, unsigned block, unsigned quad) {
    return philox4x32(d.key, head << 16 | (block * 4 + quad), row_key, d.site, 0);
}

// Kernels that test what the emulator knows of sm_90: tiles by TMA, mbarriers, products of warpgroups. Some are wrong on purpose.
#include "common/tma.cuh"
#include "common/wgmma.cuh"

// Copies the boxes of a matrix through shared memory to another place: y[r + to_row, c + to_column] = x[r + row, c + column].
extern "C" __global__ void test_tiles(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap y, float* seen, int row,
                                      int column, int to_row, int to_column, int box_rows) {
    SHARED_ALIGNED(unsigned char, tile);
    SHARED(Mbarrier, full, [1]);
    if (threadIdx.x == 0) {
        mbarrier_init(full[0], 1);
        publish_mbarriers();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        tma_prefetch(x);
        mbarrier_arrive_expect(full[0], box_rows * 128);
        tma_load(tile, x, row, column, full[0]);
    }
    mbarrier_wait(full[0], 0);
    // What lies where, as the header says.
    for (int i = threadIdx.x; i < box_rows * 64; i += blockDim.x) {
        const int r = i / 64, c = i % 64;
        const int at = r * 64 + ((c / 8) ^ (r % 8)) * 8 + c % 8;
        seen[i] = widen(reinterpret_cast<const bf16*>(tile)[at]);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        tma_store(y, to_row, to_column, tile);
        commit_stores();
        wait_stores_read<0>();
    }
}
EXPORT(test_tiles)

// A ring of two tiles that one warp fills and a warpgroup reads: sums of the rows of a matrix of 64 columns, `tiles` boxes of 64 rows.
// By `what`: 1 the consumers do not wait, 2 the producer does not wait for them, 3 too few bytes are announced, 4 too many,
// 5 the barrier was not initialized, 6 it was not published, 7 one arrival too few, 8 a thread overwrites a barrier,
// 9 bulk rows instead of boxes, 10 the consumers wait for the wrong parity, 11 a tile is not aligned, 12 nobody waits at all.
extern "C" __global__ void test_ring(const __grid_constant__ TensorMap x, const bf16* rows, float* y, int tiles, int what) {
    SHARED_ALIGNED(unsigned char, ring);
    SHARED(Mbarrier, full, [2]);
    SHARED(Mbarrier, empty, [2]);
    constexpr int BYTES = 64 * 128;
    if (threadIdx.x == 0) {
        for (int s = 0; s < 2; s++) {
            if (what != 5) mbarrier_init(full[s], 1);
            mbarrier_init(empty[s], 128);
        }
        if (what != 6) publish_mbarriers();
    }
    __syncthreads();
    const int t = static_cast<int>(threadIdx.x);
    if (t >= 128) {
        if (t > 128) return;
        for (int i = 0; i < tiles; i++) {
            const int s = i % 2;
            if (i >= 2 && what != 2) mbarrier_wait(empty[s], (i / 2 - 1) % 2);
            mbarrier_arrive_expect(full[s], what == 3 ? BYTES - 16 : what == 4 ? BYTES + 16 : BYTES);
            if (what == 9)
                bulk_load(ring + s * BYTES, rows + i * 64 * 64, BYTES, full[s]);
            else
                tma_load(ring + s * BYTES + (what == 11) * 512, x, i * 64, 0, full[s]);
            if (what == 12) break;
            if (what == 8 && i == 1) full[0].word = 0;
        }
        return;
    }
    if (what == 12) return;
    for (int i = 0; i < tiles; i++) {
        const int s = i % 2, r = t / 2;
        if (what != 1) mbarrier_wait(full[s], (i / 2 + (what == 10)) % 2);
        const bf16* tile = reinterpret_cast<const bf16*>(ring + s * BYTES);
        float sum = 0.0f;
        for (int c = t % 2 * 32; c < t % 2 * 32 + 32; c++)
            sum += widen(what == 9 ? tile[r * 64 + c] : tile[r * 64 + ((c / 8) ^ (r % 8)) * 8 + c % 8]);
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        if (t % 2 == 0) y[i * 64 + r] = sum;
        if (what != 7 || t != 5) mbarrier_arrive(empty[s]);
    }
}
EXPORT(test_ring)

// Two tiles, 64 x 64 of numbers 0 and 1, are made by the threads in the same place and stored one after the other. By `what`:
// 1 no fence_async, 2 the second is made before the first was read, 3 nobody waits, 4 nobody commits.
extern "C" __global__ void test_stores(const __grid_constant__ TensorMap y, int what) {
    SHARED_ALIGNED(bf16, tile);
    for (int round = 0; round < 2; round++) {
        for (int i = threadIdx.x; i < 64 * 64; i += blockDim.x) tile[i] = narrow<bf16>(static_cast<float>(round));
        if (what != 1) fence_async();
        __syncthreads();
        if (threadIdx.x == 0) {
            tma_store(y, 64 * round, 0, tile);
            if (what != 4) commit_stores();
            if (what != 2 && what != 3) wait_stores_read<0>();
        }
        __syncthreads();
    }
    if (what == 2 && threadIdx.x == 0) wait_stores_read<0>();
}
EXPORT(test_stores)

// Warpgroups move registers: the first gives down to `first`, the others take up to `second`.
extern "C" __global__ void test_registers(int first, int second) {
    if (threadIdx.x < 128)
        emulator::set_registers(first, false);
    else
        emulator::set_registers(second, true);
}
EXPORT(test_registers)

// y [64, 64] = a b^T, both [64, 64 * depth], by a pipeline of two stages: one warpgroup copies tiles, another multiplies. If
// `what` is 1 a stage is given back before its product was waited for.
extern "C" __global__ void test_pipeline(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* y, int depth,
                                         int what) {
    SHARED_ALIGNED(unsigned char, tiles);
    SHARED(Mbarrier, full, [2]);
    SHARED(Mbarrier, empty, [2]);
    constexpr int TILE = 64 * 128;
    const int t = static_cast<int>(threadIdx.x) % 128;
    if (threadIdx.x == 0) {
        for (int s = 0; s < 2; s++) {
            mbarrier_init(full[s], 1);
            mbarrier_init(empty[s], 1);
        }
        publish_mbarriers();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        give_registers<40>();
        for (int i = 0; i < depth && t == 0; i++) {
            unsigned char* stage = tiles + i % 2 * 2 * TILE;
            mbarrier_wait(empty[i % 2], (i / 2 + 1) % 2);
            mbarrier_arrive_expect(full[i % 2], 2 * TILE);
            tma_load(stage, a, 0, 64 * i, full[i % 2]);
            tma_load(stage + TILE, b, 0, 64 * i, full[i % 2]);
        }
    } else {
        take_registers<256>();
        float d[32];
        for (int i = 0; i < depth; i++) {
            const unsigned char* stage = tiles + i % 2 * 2 * TILE;
            mbarrier_wait(full[i % 2], i / 2 % 2);
            hold(d);
            fence_products();
            for (int k = 0; k < 4; k++)
                wgmma<64, K_MAJOR, K_MAJOR>(d, advance(operand<K_MAJOR>(stage), 32 * k),
                                            advance(operand<K_MAJOR>(stage + TILE), 32 * k), i + k > 0);
            commit_products();
            // The product before this one is done: its stage is free.
            if (what == 1)
                wait_products<2>();
            else
                wait_products<1>();
            if (i > 0) {
                sync_named(1, 128);
                if (t == 0) mbarrier_arrive(empty[(i - 1) % 2]);
            }
        }
        wait_products<0>();
        hold(d);
        for (int i = 0; i < 32; i++)
            y[(16 * (t / 32) + t % 32 / 4 + i % 4 / 2 * 8) * 64 + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];
    }
}
EXPORT(test_pipeline)

// What goes wrong with products, by `what` of test_product.
enum { RIGHT, NO_WAIT, OVERWRITTEN, NO_FENCE, NO_COMMIT, MISSING_THREAD, OTHER_OPERANDS, TOUCHED, NO_ASYNC_FENCE, PARTIAL, LEFT, INSIDE, NEVER };

__device__ __forceinline__ int swizzle_at(int r, int c) { return r * 64 + ((c / 8) ^ (r % 8)) * 8 + c % 8; }

// y [64, N] = a b + c with K = 64 * `depth`, operands as they lie in tiles of 64 columns: A K-major [64, K] or MN-major [K, 64],
// B K-major [N, K] or MN-major [K, N]. All tiles are written by the threads.
template <int N, int A, int B, bool REGISTERS>
__device__ void product(float* y, const bf16* a, const bf16* b, const float* c, int depth, int what) {
    SHARED_ALIGNED(bf16, tiles);
    bf16* b_tiles = tiles + depth * 64 * 64;
    const int t = static_cast<int>(threadIdx.x), k_all = depth * 64;
    for (int i = t; i < 64 * k_all; i += 128) {
        const int row = A == K_MAJOR ? i / k_all : i % 64, k = A == K_MAJOR ? i % k_all : i / 64;
        const int at = A == K_MAJOR ? swizzle_at(row, k % 64) : swizzle_at(k % 64, row);
        tiles[k / 64 * 64 * 64 + at] = a[i];
    }
    // K-major: depth tiles of N rows; MN-major: depth x N / 64 tiles of 64 rows.
    for (int i = t; i < N * k_all; i += 128) {
        const int column = B == K_MAJOR ? i / k_all : i % N, k = B == K_MAJOR ? i % k_all : i / N;
        const int at = B == K_MAJOR ? swizzle_at(column, k % 64) : column / 64 * 64 * 64 + swizzle_at(k % 64, column % 64);
        b_tiles[k / 64 * N * 64 + at] = b[i];
    }
    if (what != NO_ASYNC_FENCE) fence_async();
    __syncthreads();
    const int warp = t / 32, row = t % 32 / 4, quad = t % 4;
    float d[N / 2];
    for (int i = 0; i < N / 2; i++) d[i] = c[(16 * warp + row + i % 4 / 2 * 8) * N + i / 4 * 8 + 2 * quad + i % 2];
    if (what == MISSING_THREAD && t == 77) return;
    if (what == LEFT && t >= 96) return;
    if (what != NO_FENCE) fence_products();
    for (int k = 0; k < k_all; k += 16) {
        const unsigned long long left =
            A == K_MAJOR ? advance(operand<A>(tiles + k / 64 * 64 * 64), k % 64 * 2) : operand<A>(tiles + k * 64);
        unsigned long long right = B == K_MAJOR ? advance(operand<B>(b_tiles + k / 64 * N * 64), k % 64 * 2)
                                                : operand<B>(b_tiles + k / 64 * N * 64 + k % 64 * 64, 64 * 128);
        if (what == OTHER_OPERANDS && t == 9) right = advance(right, 32);
        if (what == INSIDE) right = advance(right, 128);
        if constexpr (REGISTERS) {
            if (k > 0) fence_products();
            Fragment f;
            for (int w = 0; w < 4; w++) {
                const int r = 16 * warp + row + w % 2 * 8, at = k + w / 2 * 8 + 2 * quad;
                f.at[w] = pack_bf16(widen(a[r * k_all + at]), widen(a[r * k_all + at + 1]));
            }
            wgmma<N, B>(d, f, right);
        } else {
            wgmma<N, A, B>(d, left, right);
        }
    }
    if (what != NO_COMMIT) commit_products();
    if (what == TOUCHED) d[3] = 1.0f;
    if (what != NO_WAIT && what != PARTIAL) wait_products<0>();
    if (what == PARTIAL) wait_products<1>();
    if (what == OVERWRITTEN) {
        // The next operands, which arrive before the product has read its own.
        fence_products();
        wgmma<N, A, B>(d, operand<A>(tiles), operand<B>(b_tiles, 64 * 128));
        commit_products();
        for (int i = t; i < 64 * 64; i += 128) tiles[i] = narrow<bf16>(0.0f);
        fence_async();
        wait_products<0>();
    }
    for (int i = 0; i < N / 2; i++) y[(16 * warp + row + i % 4 / 2 * 8) * N + i / 4 * 8 + 2 * quad + i % 2] = d[i];
    if (what == NEVER) {
        fence_products();
        wgmma<N, A, B>(d, operand<A>(tiles), operand<B>(b_tiles, 64 * 128));
        commit_products();
    }
    if (what == NO_WAIT || what == PARTIAL) wait_products<0>();
}

#define TEST_PRODUCT(name, n, a_major, b_major, registers)                                                                     \
    extern "C" __global__ void name(float* y, const bf16* a, const bf16* b, const float* c, int depth, int what) { \
        product<n, a_major, b_major, registers>(y, a, b, c, depth, what);                                                      \
    }                                                                                                                          \
    EXPORT(name)
TEST_PRODUCT(test_product_64_kk, 64, K_MAJOR, K_MAJOR, false)
TEST_PRODUCT(test_product_64_km, 64, K_MAJOR, MN_MAJOR, false)
TEST_PRODUCT(test_product_64_mk, 64, MN_MAJOR, K_MAJOR, false)
TEST_PRODUCT(test_product_64_mm, 64, MN_MAJOR, MN_MAJOR, false)
TEST_PRODUCT(test_product_64_rk, 64, K_MAJOR, K_MAJOR, true)
TEST_PRODUCT(test_product_64_rm, 64, K_MAJOR, MN_MAJOR, true)
TEST_PRODUCT(test_product_128_kk, 128, K_MAJOR, K_MAJOR, false)
TEST_PRODUCT(test_product_128_km, 128, K_MAJOR, MN_MAJOR, false)
TEST_PRODUCT(test_product_128_mk, 128, MN_MAJOR, K_MAJOR, false)
TEST_PRODUCT(test_product_128_mm, 128, MN_MAJOR, MN_MAJOR, false)
TEST_PRODUCT(test_product_128_rk, 128, K_MAJOR, K_MAJOR, true)
TEST_PRODUCT(test_product_128_rm, 128, K_MAJOR, MN_MAJOR, true)
TEST_PRODUCT(test_product_256_kk, 256, K_MAJOR, K_MAJOR, false)
TEST_PRODUCT(test_product_256_km, 256, K_MAJOR, MN_MAJOR, false)
TEST_PRODUCT(test_product_256_mk, 256, MN_MAJOR, K_MAJOR, false)
TEST_PRODUCT(test_product_256_mm, 256, MN_MAJOR, MN_MAJOR, false)
TEST_PRODUCT(test_product_256_rk, 256, K_MAJOR, K_MAJOR, true)
TEST_PRODUCT(test_product_256_rm, 256, K_MAJOR, MN_MAJOR, true)

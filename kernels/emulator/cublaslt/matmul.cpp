// The functions of cuBLASLt that the engine calls. Names, numbers and layouts are those of NVIDIA's documentation of
// cuBLASLt 13.
#include <string.h>

#include <mutex>
#include <set>

#include "library.h"
#include "product.h"

namespace {

using Status = int;
enum : int { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum : int { R_32F = 0, R_16BF = 14 };
enum : int { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_TF32 = 77 };
enum : int { EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4 };

struct Handle {};
struct Description {
    int compute, scale, pointer_mode = 0, transpose_a = 0, transpose_b = 0, epilogue = EPILOGUE_DEFAULT, bias_type = -1;
    const void* bias = nullptr;
};
struct Layout {
    int type, order = 0, batch = 1;
    uint64_t rows, cols;
    int64_t ld;
};
struct Preference {
    uint64_t workspace = 0;
};
struct Algorithm {
    uint64_t data[8];
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    Status state;
    float waves;
    int reserved[4];
};

// Never destroyed: threads may still call while the process ends.
auto& mutex = *new std::mutex;

// The live objects of a type: a handle that is none of them is refused.
template <class T>
std::set<const T*>& live() {
    static auto& all = *new std::set<const T*>;
    return all;
}
template <class T>
bool is_live(const T* p) {
    const std::lock_guard<std::mutex> lock(mutex);
    return live<T>().count(p) == 1;
}
template <class T>
Status create(T** out, T* object) {
    if (out == nullptr) {
        delete object;
        return INVALID_VALUE;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    live<T>().insert(object);
    *out = object;
    return SUCCESS;
}
template <class T>
Status destroy(T* object) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (live<T>().erase(object) == 0) return INVALID_VALUE;
    delete object;
    return SUCCESS;
}
template <class T>
Status set(T& field, const void* value, size_t bytes) {
    if (value == nullptr || bytes != sizeof(T)) return INVALID_VALUE;
    memcpy(&field, value, sizeof(T));
    return SUCCESS;
}

// The algorithms: each cuts the sum over k into one more part, and takes more workspace.
constexpr int ALGORITHMS = 8;
constexpr uint64_t MARK = 0x726f74616c756d65;
constexpr size_t WORKSPACE[ALGORITHMS] = {0, 0, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 32 << 20};

struct Problem {
    const Description* description;
    const Layout *a, *b, *c, *d;
};

bool known(int type) { return type == R_32F || type == R_16BF; }

// What the library says to a description, before it looks at pointers.
Status check(const Problem& p) {
    if (!is_live(p.description) || !is_live(p.a) || !is_live(p.b) || !is_live(p.c) || !is_live(p.d)) return INVALID_VALUE;
    const Description& o = *p.description;
    for (const Layout* l : {p.a, p.b, p.c, p.d}) {
        if (!known(l->type) || l->order != 0 || l->batch != 1) return NOT_SUPPORTED;
        if (l->rows == 0 || l->cols == 0 || l->ld < static_cast<int64_t>(l->rows)) return INVALID_VALUE;
    }
    if (o.scale != R_32F || o.pointer_mode != 0) return NOT_SUPPORTED;
    if (o.compute != COMPUTE_32F && o.compute != COMPUTE_32F_PEDANTIC && o.compute != COMPUTE_32F_FAST_TF32)
        return NOT_SUPPORTED;
    if (o.epilogue != EPILOGUE_DEFAULT && o.epilogue != EPILOGUE_BIAS) return NOT_SUPPORTED;
    if (p.a->type != p.b->type || p.c->type != p.d->type || (p.a->type == R_32F && p.d->type == R_16BF))
        return NOT_SUPPORTED;
    if (o.epilogue == EPILOGUE_BIAS && o.bias_type >= 0 && o.bias_type != p.d->type) return NOT_SUPPORTED;
    const uint64_t m = o.transpose_a ? p.a->cols : p.a->rows, k = o.transpose_a ? p.a->rows : p.a->cols;
    const uint64_t n = o.transpose_b ? p.b->rows : p.b->cols, k_of_b = o.transpose_b ? p.b->cols : p.b->rows;
    const bool fits = k == k_of_b && p.d->rows == m && p.d->cols == n && p.c->rows == m && p.c->cols == n;
    return fits ? SUCCESS : INVALID_VALUE;
}

// An algorithm belongs to types, transpositions and epilogue; sizes may differ.
uint64_t configuration(const Problem& p) {
    const Description& o = *p.description;
    uint64_t h = 1;
    for (const int x : {p.a->type, p.d->type, o.transpose_a, o.transpose_b, o.epilogue, o.compute})
        h = h * 1000003 + static_cast<uint64_t>(x);
    return h;
}

Algorithm algorithm(const Problem& p, int id) {
    Algorithm a{};
    a.data[0] = MARK;
    a.data[1] = static_cast<uint64_t>(id);
    a.data[2] = configuration(p);
    for (int i = 3; i < 8; i++) a.data[i] = a.data[2] * static_cast<uint64_t>(id + i);
    return a;
}

// The algorithm's number, or -1 if these are not bytes of one for this problem.
int identify(const Problem& p, const Algorithm& a) {
    if (a.data[0] != MARK || a.data[1] >= ALGORITHMS) return -1;
    const Algorithm expected = algorithm(p, static_cast<int>(a.data[1]));
    return memcmp(&expected, &a, sizeof a) == 0 ? static_cast<int>(a.data[1]) : -1;
}

Matrix matrix(const void* at, const Layout& l) {
    return {const_cast<void*>(at), l.type == R_16BF, l.rows, l.cols, static_cast<size_t>(l.ld)};
}

void check_memory(const Product& p, void* workspace, size_t workspace_bytes) {
    emulator::check_range("A", p.a.at, p.a.bytes(), p.a.element());
    emulator::check_range("B", p.b.at, p.b.bytes(), p.b.element());
    if (p.beta != 0.0f) emulator::check_range("C", p.c.at, p.c.bytes(), p.c.element());
    emulator::check_range("D", p.d.at, p.d.bytes(), p.d.element());
    if (p.bias != nullptr) emulator::check_range("the bias", p.bias, p.d.rows * p.d.element(), p.d.element());
    if (workspace_bytes > 0) emulator::check_range("the workspace", workspace, workspace_bytes, 16);
}

}  // namespace

#define LT extern "C" __attribute__((visibility("default")))
#define FAIL_IF_INJECTED \
    if (const int injected = emulator::library_failure(__func__); injected != 0) return injected

LT Status cublasLtCreate(Handle** handle) {
    FAIL_IF_INJECTED;
    return create(handle, new Handle);
}
LT Status cublasLtDestroy(Handle* handle) { return destroy(handle); }
LT size_t cublasLtGetVersion() { return 130000; }
LT size_t cublasLtGetCudartVersion() { return 13000; }

LT const char* cublasLtGetStatusName(Status status) {
    switch (status) {
        case SUCCESS:
            return "CUBLAS_STATUS_SUCCESS";
        case NOT_INITIALIZED:
            return "CUBLAS_STATUS_NOT_INITIALIZED";
        case 3:
            return "CUBLAS_STATUS_ALLOC_FAILED";
        case INVALID_VALUE:
            return "CUBLAS_STATUS_INVALID_VALUE";
        case 8:
            return "CUBLAS_STATUS_ARCH_MISMATCH";
        case 11:
            return "CUBLAS_STATUS_MAPPING_ERROR";
        case EXECUTION_FAILED:
            return "CUBLAS_STATUS_EXECUTION_FAILED";
        case 14:
            return "CUBLAS_STATUS_INTERNAL_ERROR";
        case NOT_SUPPORTED:
            return "CUBLAS_STATUS_NOT_SUPPORTED";
        case 16:
            return "CUBLAS_STATUS_LICENSE_ERROR";
        default:
            return "CUBLAS_STATUS_UNKNOWN";
    }
}
LT const char* cublasLtGetStatusString(Status status) { return cublasLtGetStatusName(status); }

LT Status cublasLtMatmulDescCreate(Description** description, int compute, int scale) {
    auto* d = new Description;
    d->compute = compute;
    d->scale = scale;
    return create(description, d);
}
LT Status cublasLtMatmulDescDestroy(Description* description) { return destroy(description); }
LT Status cublasLtMatmulDescSetAttribute(Description* d, int attribute, const void* value, size_t bytes) {
    if (!is_live(d)) return INVALID_VALUE;
    switch (attribute) {
        case 0:
            return set(d->compute, value, bytes);
        case 1:
            return set(d->scale, value, bytes);
        case 2:
            return set(d->pointer_mode, value, bytes);
        case 3:
            return set(d->transpose_a, value, bytes);
        case 4:
            return set(d->transpose_b, value, bytes);
        case 7:
            return set(d->epilogue, value, bytes);
        case 8:
            return set(d->bias, value, bytes);
        case 26:
            return set(d->bias_type, value, bytes);
        default:
            return NOT_SUPPORTED;
    }
}

LT Status cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    auto* l = new Layout;
    l->type = type;
    l->rows = rows;
    l->cols = cols;
    l->ld = ld;
    return create(layout, l);
}
LT Status cublasLtMatrixLayoutDestroy(Layout* layout) { return destroy(layout); }
LT Status cublasLtMatrixLayoutSetAttribute(Layout* l, int attribute, const void* value, size_t bytes) {
    if (!is_live(l)) return INVALID_VALUE;
    switch (attribute) {
        case 0:
            return set(l->type, value, bytes);
        case 1:
            return set(l->order, value, bytes);
        case 2:
            return set(l->rows, value, bytes);
        case 3:
            return set(l->cols, value, bytes);
        case 4:
            return set(l->ld, value, bytes);
        case 5:
            return set(l->batch, value, bytes);
        default:
            return NOT_SUPPORTED;
    }
}

LT Status cublasLtMatmulPreferenceCreate(Preference** preference) { return create(preference, new Preference); }
LT Status cublasLtMatmulPreferenceDestroy(Preference* preference) { return destroy(preference); }
LT Status cublasLtMatmulPreferenceSetAttribute(Preference* p, int attribute, const void* value, size_t bytes) {
    if (!is_live(p) || value == nullptr) return INVALID_VALUE;
    if (attribute == 1) return set(p->workspace, value, bytes);
    // Search mode, masks of reductions, alignments: they narrow a choice that is made here by the workspace alone.
    return attribute >= 0 && attribute <= 13 ? SUCCESS : INVALID_VALUE;
}

LT Status cublasLtMatmulAlgoGetHeuristic(Handle* handle, Description* o, Layout* a, Layout* b, Layout* c, Layout* d,
                                         Preference* preference, int requested, Heuristic* results, int* found) {
    FAIL_IF_INJECTED;
    if (!is_live(handle)) return NOT_INITIALIZED;
    if (!is_live(preference) || requested <= 0 || results == nullptr || found == nullptr) return INVALID_VALUE;
    *found = 0;
    const Problem p{o, a, b, c, d};
    if (const Status status = check(p); status != SUCCESS) return status;
    for (int id = ALGORITHMS - 1; id >= 0 && *found < requested; id--) {
        if (WORKSPACE[id] > preference->workspace) continue;
        Heuristic& r = results[(*found)++];
        r = {algorithm(p, id), WORKSPACE[id], SUCCESS, 1.0f, {}};
    }
    return SUCCESS;
}

LT Status cublasLtMatmulAlgoCheck(Handle* handle, Description* o, Layout* a, Layout* b, Layout* c, Layout* d,
                                  const Algorithm* chosen, Heuristic* result) {
    FAIL_IF_INJECTED;
    if (!is_live(handle)) return NOT_INITIALIZED;
    if (chosen == nullptr || result == nullptr) return INVALID_VALUE;
    const Problem p{o, a, b, c, d};
    if (const Status status = check(p); status != SUCCESS) return status;
    const int id = identify(p, *chosen);
    if (id < 0) return INVALID_VALUE;
    *result = {*chosen, WORKSPACE[id], SUCCESS, 1.0f, {}};
    return SUCCESS;
}

LT Status cublasLtMatmul(Handle* handle, Description* o, const void* alpha, const void* a, Layout* a_layout, const void* b,
                         Layout* b_layout, const void* beta, const void* c, Layout* c_layout, void* d, Layout* d_layout,
                         const Algorithm* chosen, void* workspace, size_t workspace_bytes, void* stream) {
    FAIL_IF_INJECTED;
    if (!is_live(handle)) return NOT_INITIALIZED;
    if (alpha == nullptr || beta == nullptr || a == nullptr || b == nullptr || d == nullptr) return INVALID_VALUE;
    const Problem problem{o, a_layout, b_layout, c_layout, d_layout};
    if (const Status status = check(problem); status != SUCCESS) return status;
    const int id = chosen == nullptr ? 0 : identify(problem, *chosen);
    if (id < 0 || WORKSPACE[id] > workspace_bytes || (WORKSPACE[id] > 0 && workspace == nullptr)) return INVALID_VALUE;
    if (o->epilogue == EPILOGUE_BIAS && o->bias == nullptr) return INVALID_VALUE;
    Product p{matrix(a, *a_layout),
              matrix(b, *b_layout),
              matrix(c, *c_layout),
              matrix(d, *d_layout),
              o->transpose_a != 0,
              o->transpose_b != 0,
              false,
              0,
              0,
              o->epilogue == EPILOGUE_BIAS ? o->bias : nullptr,
              id + 1};
    p.tf32 = o->compute == COMPUTE_32F_FAST_TF32 && !p.a.bf16;
    memcpy(&p.alpha, alpha, sizeof(float));
    memcpy(&p.beta, beta, sizeof(float));
    if (p.beta != 0.0f && c == nullptr) return INVALID_VALUE;
    if (c == d && p.c.ld != p.d.ld) return INVALID_VALUE;
    const bool queued = emulator::enqueue_library(stream, "cublasLtMatmul", [p, workspace, bytes = WORKSPACE[id]] {
        check_memory(p, workspace, bytes);
        // The library writes there what nobody else may rely on.
        if (bytes > 0) memset(workspace, 0xee, bytes);
        multiply(p);
    });
    return queued ? SUCCESS : EXECUTION_FAILED;
}
